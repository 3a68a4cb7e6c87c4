"""`fedsim report`: what its page holds, which runs count, what it refuses to write over, and the clients' accuracies that runs keep."""

import errno
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from folders import row, simulate, write_labels, write_run, write_sweep
from launch import TEXT, call, resumed
from launch import simulate as run_here

from fedsim.base.errors import FedsimError, HostError
from fedsim.report.page.digest import evenly, over_clients, short
from fedsim.report.page.page import report
from fedsim.run.folders import RunFolder, find_runs

DIGITS = "seed: 0\ntask: {data: digits}\nstrategy: {name: fedavg, server_lr: 1}\n"
HARD = '</script><script>throw 1</script> "é学" {{code}} & <b>'  # a name that HTML, JSON or our own template might stumble over


@pytest.fixture(scope="module")
def upper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep: `plain` with two seeds, a variant with a hard name, and one run each that failed, goes on, is damaged, or never began."""
    upper = tmp_path_factory.mktemp("runs") / "demo" / "20261121-142530-3f9a1c"
    slow = simulate([300, 500, 700, 900], 2, 10_000, 500)
    fast = simulate([100, 200, 300, 400], 2, 10_000, 500, drop=7)
    known = {"nodes": 4, "target": 0.3, "target_reached": None}
    hit = {"round": 9.0, "seconds": 4.0, "bytes": 2e6, "updates": 18.0, "apart": 0.1}
    for name, seed in (("plain", 0), ("plain", 1)):
        records = [record | {"test/accuracy": record["test/accuracy"] + 0.02 * seed} for record in slow[1]]
        write_run(upper / f"{name}-seed{seed}", slow[0], records, DIGITS, label=f"{name} seed {seed}", variant=name, seed=seed, **known)
        write_labels(upper / f"{name}-seed{seed}", 4, 10, 0.5)
    other = DIGITS.replace("server_lr: 1", "server_lr: 0.5")
    write_run(upper / "hard", *fast, other, label=f"{HARD} seed 0", variant=HARD, **known | {"target_reached": hit})
    for name in ("failed", "stopped"):
        write_run(upper / name, *fast, DIGITS, label=f"{name} seed 0", variant=name, **known | {"status": name, "reason": "no room"})
    write_run(upper / "going", *fast, DIGITS, label="going seed 0", variant="going", **known | {"status": "running", "reason": None})
    write_run(upper / "damaged", *fast, DIGITS, label="damaged seed 0", variant="damaged", **known)
    (upper / "damaged" / "metrics.jsonl").write_text("{\n")
    write_run(upper / "torn", *fast, DIGITS, label="torn seed 0", variant="torn", **known)
    (upper / "torn" / "events" / "000000.parquet").write_bytes(b"PAR1")
    names = ["plain-seed0", "plain-seed1", "hard", "failed", "stopped", "going", "damaged", "torn", "never"]
    return write_sweep(upper, names)


@pytest.fixture(scope="module")
def page(upper: Path) -> str:
    shown = call("report", upper, "-o", upper / "report.html")
    assert shown.exit_code == 0 and shown.stdout == f"{upper / 'report.html'}\n"
    assert len(re.findall(r"^not counted: ", shown.stderr, re.M)) == 6
    return (upper / "report.html").read_text()


def content(page: str) -> Any:
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(data)


# What it holds


def test_what_is_counted(page: str) -> None:
    found = content(page)
    [task] = found["tasks"]
    assert task["name"] == "digits"
    assert task["variants"] == [{"name": "plain", "runs": 2}, {"name": HARD, "runs": 1}]
    left = {one["label"]: (one["status"], one["why"]) for one in found["left"]}
    assert {label: status for label, (status, _) in left.items()} == {
        **{"failed seed 0": "failed", "stopped seed 0": "stopped", "going seed 0": "killed"},
        **{"damaged": "damaged", "torn seed 0": "damaged", "never": "not begun"},
    }
    assert (
        left["failed seed 0"][1].startswith("no room, at round ") and "metrics.jsonl: broken (line 1: it is no JSON)" in left["damaged"][1]
    )


def test_table(page: str) -> None:
    """The second seed of `plain` is 2 points better, so that both lie 1 from their mean, and sqrt(2) is their deviation."""
    [task] = content(page)["tasks"]
    titles = [column["title"] for column in task["table"]["columns"]]
    plain, hard = (dict(zip(titles[:5], row[:5], strict=True)) for row in task["table"]["rows"])
    first = task["runs"][0]["curves"]["test/accuracy"][-1]
    assert plain["seeds"] == ["2", 2] and plain["accuracy"] == [f"{100 * first + 1:.1f} ± 1.4 %", pytest.approx(first + 0.01, abs=1e-5)]
    assert hard["variant"] == [HARD, None]
    reached = [row[titles.index("time")] for row in task["table"]["rows"]]
    assert reached == [["not reached", None], ["4 s", 4]]
    assert task["settings"]["keys"] == ["strategy.server_lr"] and task["settings"]["rows"] == [[["1", None], ["0.5", None]]]
    assert [["task.data", None], ["digits", None]] in task["settings"]["common"] and ["strategy", None] in [
        row[0] for row in task["settings"]["common"]
    ]


def test_events(upper: Path, page: str) -> None:
    [task] = content(page)["tasks"]
    columns = RunFolder(upper / "plain-seed0").columns
    merged = (columns["kind"] == 2) & (columns["job"] >= 0)
    run = task["runs"][0]
    assert sum(run["merged"][1]) == merged.sum() and run["merged"][0] == [0.125, 0.375, 0.625, 0.875]
    assert run["staleness"] == [short(share) for share in np.bincount(columns["staleness"][merged]) / merged.sum()]
    bars = task["gantt"][0]
    assert bars["nodes"] == [0, 1, 2, 3] and bars["of"] == "4" and len(bars["row"]) == len(bars["start"]) == (columns["kind"] == 0).sum()
    shown = [one * (bars["to"] - bars["from"]) / 1e6 for one in bars["work"][:4]]
    assert shown == pytest.approx([0.3, 0.5, 0.7, 0.9], abs=1e-4)  # the first jobs' work, in seconds
    assert len(task["gantt"][1]["dropped"]) == (RunFolder(upper / "hard").columns["kind"] == 3).sum() > 0


def test_a_hard_name_stays_text(page: str) -> None:
    assert page.count("</script>") == 2 and HARD not in page and "throw 1" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:,)|https?://(?!www\.w3\.org/2000/svg)""", page)  # nothing is loaded


def test_the_same_runs_make_the_same_bytes(upper: Path, page: str) -> None:
    report([RunFolder(run.path) for run in find_runs([str(upper)])] + [RunFolder(upper / "never")], upper / "again.html")
    assert (upper / "again.html").read_text() == page


def test_tasks_are_kept_apart(upper: Path, folder: Path) -> None:
    rows, records = simulate([300, 500], 2, 3000, 500)
    write_run(folder / "other", rows, records, DIGITS.replace("digits", "{name: mnist, rows: 9}"), name="other")
    report([*find_runs([str(upper)]), RunFolder(folder / "other")], folder / "both.html")
    found = content((folder / "both.html").read_text())
    assert [(task["name"], len(task["runs"])) for task in found["tasks"]] == [("digits", 3), ("mnist, data.rows 9", 1)]


def test_no_run_has_finished(upper: Path, folder: Path) -> None:
    report([RunFolder(upper / "failed")], folder / "none.html")
    found = content((folder / "none.html").read_text())
    assert found["tasks"] == [] and [one["status"] for one in found["left"]] == ["failed"]


def test_among_the_figures_by_default(upper: Path, folder: Path) -> None:
    shutil.copytree(upper / "hard", folder / "run")
    assert call("report", "run").stdout == "run/figures/report.html\n"


def test_short_lists() -> None:
    assert evenly(3, 5) == [0, 1, 2] and evenly(9, 3) == [0, 4, 8]
    assert over_clients(np.array([3, 1, 2, 1])) == ([0.125, 0.375, 0.625, 0.875], [1, 1, 2, 3])
    assert [short(one) for one in (0.123456, 123456.7, 2.0, None, float("nan"))] == [0.12346, 123457, 2, None, None]


@pytest.mark.slow
def test_twenty_long_runs_are_small(folder: Path) -> None:
    """20 runs of 500 evaluations: at most 2 MB."""
    rows, records = simulate([600 + 13 * node for node in range(40)], 5, 60_000, 120)
    assert len(records) > 500
    for seed in range(20):
        noise = 0.01 * np.random.default_rng(seed).normal(size=len(records))
        own = [record | {"test/accuracy": record["test/accuracy"] + float(by)} for record, by in zip(records, noise, strict=True)]
        write_run(folder / "runs" / f"v{seed}", rows, own, DIGITS, label=f"v{seed} seed 0", variant=f"v{seed}", nodes=40)
    report([RunFolder(path) for path in sorted((folder / "runs").iterdir())], folder / "big.html")
    assert (folder / "big.html").stat().st_size < 2e6
    assert len(content((folder / "big.html").read_text())["tasks"][0]["runs"][0]["curves"]["round"]) == len(records)  # none is left out


# What it refuses


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "no run `nothing`: it is no run's folder, and runs/ has no runs yet"),
        (["."], "no run `.`"),
        (["RUN", "-o", "away/page.html"], "away/page.html: there is no folder away; make it first"),
        (["RUN", "-o", "."], ". is a folder; a file is due, such as report.html"),
        (["RUN", "-o", "page.txt"], "page.txt: a name that ends in .html is due"),
        (["RUN", "-o", "mine.html"], "mine.html is there already and is no report of fedsim, so it is left as it is"),
        (["RUN", "-o", 300 * "x" + ".html"], "x.html can't be written: File name too long"),
        (["DAMAGED", "-o", "page.html"], "metrics.jsonl: broken (line 1: it is no JSON)"),
    ],
)
def test_refusals(upper: Path, folder: Path, words: list[str], said: str) -> None:
    (folder / "mine.html").write_text("<html>my own page</html>")
    shown = call("report", *[{"RUN": upper / "hard", "DAMAGED": upper / "damaged"}.get(word, word) for word in words])
    assert shown.exit_code == 2 and said in shown.stderr and len(shown.stderr.splitlines()) == 1
    assert [file.name for file in folder.iterdir()] == ["mine.html"] and "my own" in (folder / "mine.html").read_text()


def test_its_own_page_is_replaced_and_a_full_disk_leaves_the_old_one(upper: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, runs = folder / "page.html", [RunFolder(upper / "hard")]
    report(runs, file)
    old = file.read_bytes()
    report(runs, file)

    def full(draft: Path, *_: Any, **__: Any) -> int:
        draft.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(HostError, match=r"page\.html can't be written: No space left"):
        report(runs, file)
    assert [one.name for one in folder.iterdir()] == ["page.html"] and file.read_bytes() == old


def test_foreign_events_do_not_fill_the_memory(folder: Path) -> None:
    rows, records = simulate([300, 500], 2, 3000, 500)
    rows.append(row(3000, "merge", 2**31 - 1, 1, 99, staleness=2**31 - 1))
    write_run(folder / "run", rows, records, DIGITS, nodes=2**62)
    report([RunFolder(folder / "run")], folder / "page.html")
    assert len(content((folder / "page.html").read_text())["tasks"][0]["runs"][0]["merged"][0]) <= 101


# The clients' accuracies that runs keep


def test_each_clients_accuracy_is_kept(folder: Path) -> None:
    run = run_here(folder)
    assert [file.name for file in (run.path / "clients").iterdir()] == ["000000004.parquet"]
    nodes, accuracy = run.clients or pytest.fail("none was kept")
    assert nodes.tolist() == list(range(8))
    assert accuracy.mean() == pytest.approx(run.metrics[-1]["clients/accuracy_mean"])
    assert accuracy.min() == pytest.approx(run.metrics[-1]["clients/accuracy_worst_10"])  # of 8 clients the worst one
    assert parquet.read_schema(run.path / "clients" / "000000004.parquet").metadata == {b"round": b"4", b"version": b"4"}


def test_of_each_evaluation_where_that_is_asked_for(folder: Path) -> None:
    text = TEXT + "evaluate: {every: 2 rounds, metrics: [accuracy, clients, each_client]}\n"
    once = run_here(folder, "stop.rounds=3", text=text)
    assert sorted(file.name for file in (once.path / "clients").iterdir()) == [f"00000000{at}.parquet" for at in (0, 2, 3)]
    longer = resumed(once.path, "stop.rounds=5")  # no evaluation after the third round any more
    assert sorted(file.name for file in (longer.path / "clients").iterdir()) == [f"00000000{at}.parquet" for at in (0, 2, 4, 5)]


def test_where_clients_are_not_measured_none_are_kept(folder: Path) -> None:
    run = run_here(folder, "evaluate.metrics=[accuracy]")
    assert run.clients is None and not (run.path / "clients").exists()


@pytest.mark.parametrize("damage", [b"PAR1", None])
def test_a_damaged_file_of_clients_is_named(folder: Path, damage: bytes | None) -> None:
    file = folder / "clients" / "000000004.parquet"
    file.parent.mkdir()
    import pyarrow as pa

    parquet.write_table(pa.table({"node": [0, 1], "accuracy": [0.5, 7.0]}), file)
    if damage:
        file.write_bytes(damage)
    with pytest.raises(FedsimError, match=r"000000004\.parquet: broken"):
        _ = RunFolder(folder).clients
