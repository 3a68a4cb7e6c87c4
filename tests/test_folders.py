import os
from pathlib import Path

import numpy as np
import pytest
from folders import row, simulate, table, write_labels, write_run, write_sweep

from fedsim.base.errors import FedsimError
from fedsim.federation.ledger import KINDS, Ledger
from fedsim.report.checks import check_events
from fedsim.run.folders import RunFolder, columns_of, find_runs, flatten


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep `demo` of three runs, and two runs `old` of one scenario, in a working folder."""
    monkeypatch.chdir(tmp_path)
    upper = Path("runs/demo/20261121-142530-3f9a1c")
    for name, seed in (("buffered", 0), ("fedprox-lr0.1", 0), ("fedprox-lr0.1", 1)):
        write_run(upper / f"{name}-seed{seed}", [], [], variant=name.partition("-")[0], hash=f"{seed}b{len(name)}{'0' * 60}")
    write_sweep(upper, ["buffered-seed0", "fedprox-lr0.1-seed0", "fedprox-lr0.1-seed1"])
    for stamp in ("20261120-100000-77ab00", "20261122-100000-77ab00"):
        write_run(Path("runs/old") / stamp, [], [], name="old")
    return tmp_path


def names(*texts: str) -> list[str]:
    return [str(run.path) for run in find_runs(texts)]


def test_a_run_is_a_folder_a_name_a_variant_or_a_hash(root: Path) -> None:
    upper = "runs/demo/20261121-142530-3f9a1c"
    seeds = [f"{upper}/fedprox-lr0.1-seed{seed}" for seed in (0, 1)]
    everything = [f"{upper}/buffered-seed0", *seeds]
    assert (
        names("demo") == names(upper) == names("runs/demo") == names("runs/demo/latest") == names("3f9a1c") == names("3f9a") == everything
    )
    assert names(f"demo/{Path(upper).name}") == everything
    assert names("demo/buffered") == names("demo/buffered-seed0") == names(f"{upper}/buffered-seed0") == everything[:1]
    assert names("demo/fedprox") == names("demo/fedprox-lr0.1") == seeds
    assert names("demo/fedprox-lr0.1-seed1") == names("1b13") == seeds[1:]
    assert names("old") == names("77ab00") == ["runs/old/20261122-100000-77ab00"]
    assert names("demo/buffered", "demo") == everything
    assert names(str(root / upper / "buffered-seed0")) == everything[:1]


def test_runs_of_a_sweep_that_have_not_begun_are_left_out(root: Path) -> None:
    os.remove("runs/demo/20261121-142530-3f9a1c/fedprox-lr0.1-seed0/run.json")
    assert len(names("demo")) == 2


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("dmeo", "demo"), ("demo/bufered", "demo/buffered-seed0"), ("abcdef", "demo, old"), ("runs", "demo, old")],
)
def test_nothing_found_names_the_nearest(root: Path, text: str, nearest: str) -> None:
    with pytest.raises(FedsimError, match=f"no run `{text}` under runs/; nearest: .*{nearest}"):
        find_runs([text])


def test_no_runs_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FedsimError, match="no run `demo`: it is no run's folder, and runs/ has no runs yet"):
        find_runs(["demo"])


def test_events_come_in_log_order_with_exact_ticks(tmp_path: Path) -> None:
    rows, records = simulate([300, 200], 1, 1000, 500)
    run = RunFolder(write_run(tmp_path / "run", rows, records))
    assert run.ticks_per_second == 1000
    assert [KINDS[code] for code in run.columns["kind"]] == [event["kind"] for event in rows]
    for name in ("time", "node", "job", "version", "staleness", "bytes_up", "work"):
        assert run.columns[name].tolist() == [event[name] for event in rows]
    assert run.columns["kind"].dtype == np.int8


def test_what_the_ledger_writes_is_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run/events", per_second=3)
    nodes = np.array([4, 2])
    parts = {"down": 1, "work": np.array([2, 3]), "up": 0, "steps": 7}
    ledger.add("dispatch", 2, time=0, node=nodes, job=np.arange(2), version=0, bytes_down=10, **parts)
    ledger.flush()
    ledger.add("arrival", 2, time=np.array([3, 4]), node=nodes, job=np.arange(2), version=0, bytes_up=5)
    ledger.add("merge", 2, time=4, node=nodes, job=np.arange(2), version=1, staleness=0)
    ledger.add("mix", 2, time=4, node=nodes, version=1, bytes_up=6)
    ledger.add("evaluate", time=4, version=1)
    assert [check.name for check in check_events(ledger.columns(), {}) if not check.ok] == ["ends"]  # the dispatches are in the file
    ledger.flush()
    run = RunFolder(tmp_path / "run")
    assert run.ticks_per_second == 3
    assert [KINDS[code] for code in run.columns["kind"]] == ["dispatch"] * 2 + ["arrival"] * 2 + ["merge"] * 2 + ["mix"] * 2 + ["evaluate"]
    assert run.columns["work"].tolist() == [2, 3, 0, 0, 0, 0, 0, 0, 0]
    assert all(check.ok for check in check_events(run.columns, {"final": ledger.totals() | {"round": 1}, "concurrency": 2}))


def test_columns_of_no_events(tmp_path: Path) -> None:
    assert {len(values) for values in columns_of(table([])).values()} == {0}
    (tmp_path / "empty").mkdir()
    with pytest.raises(FedsimError, match="no events were written"):
        RunFolder(tmp_path / "empty").columns  # noqa: B018


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [row(0, "evaluate")], [])
    (folder / "events/000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(FedsimError, match=r"000001\.parquet: unreadable event segment"):
        RunFolder(folder).columns  # noqa: B018
    (folder / "run.json").write_text('{"name": ')
    with pytest.raises(FedsimError, match=r"run\.json: broken"):
        RunFolder(folder).info  # noqa: B018


def test_metrics_are_columns_with_gaps_and_a_half_written_line_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [], [{"round": 0}, {"round": 1, "test/loss": 0.5}])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"round": 2, "test/lo')
    run = RunFolder(folder)
    assert run.column("round").tolist() == [0.0, 1.0]
    np.testing.assert_array_equal(run.column("test/loss"), [np.nan, 0.5])


def test_parameters_keep_their_spelling(tmp_path: Path) -> None:
    text = "train: {lr: 5e-3, batch: 010}\nsweep: {}\nstop:\n  seconds: 20 min\ngrid: [1, [2, no]]\nnodes: [a, b]\n"
    run = RunFolder(write_run(tmp_path / "run", [], [], text))
    assert run.parameters == {
        "train.lr": "5e-3",
        "train.batch": "010",
        "stop.seconds": "20 min",
        "grid.0": "1",
        "grid.1": "[2, no]",
        "nodes": "[a, b]",
    }
    assert dict(flatten({"a": {"b": [{"c": "1"}]}})) == {"a.b.0.c": "1"}


def test_labels_are_there_or_not(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [], [])
    assert RunFolder(folder).label_counts is None
    write_labels(folder, 7, 3, 0.5)
    counts = RunFolder(folder).label_counts
    assert counts is not None
    assert counts.shape == (7, 3)
