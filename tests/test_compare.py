"""`fedsim compare`: what stands in its tables, what is never averaged, and what it says of few seeds."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from folders import write_run, write_sweep
from launch import call, refused
from rich.cells import cell_len

from fedsim.report.comparison.formats import NAMES, written
from fedsim.report.comparison.rows import Comparison, compared
from fedsim.report.comparison.words import cheapest, notes, sentences
from fedsim.run.folders import RunFolder

END = {"round": 10, "time/seconds": 100.0, "traffic/bytes": 1000, "work/updates": 40, "work/dropped": 0, "staleness/mean": 0.5}
HIT = {"round": 2.0, "seconds": 20.0, "bytes": 200.0, "updates": 8.0, "apart": 0.1}
BASE = "strategy: {name: fedavg, server_lr: 1}\ntrain: {lr: 0.1}\ntask: {data: digits, partition: {name: dirichlet, alpha: 0.5}}\n"
PROX = BASE.replace("fedavg", "fedprox")


def a_run(upper: Path, variant: str, seed: int, accuracy: float, scenario: str = BASE, hit: Any = HIT, **info: Any) -> RunFolder:
    changed = info.setdefault("changed", {})
    words = " ".join([variant, *(f"{key.rpartition('.')[2]} {text}" for key, text in changed.items())])
    final = END | {"test/accuracy": accuracy, "clients/accuracy_worst_10": accuracy / 2} | info.pop("final", {})
    known = {"label": f"{words} seed {seed}", "variant": variant, "seed": seed, "target": 0.5, "target_reached": hit}
    text = f"seed: {seed}\n{scenario}"
    return RunFolder(write_run(upper / f"{words.replace(' ', '-')}-seed{seed}", [], [final], text, **known | info))


def two(upper: Path, differences: tuple[float, ...] = (0.01, 0.02, 0.03)) -> list[RunFolder]:
    """fedavg ends at 50, 60, 70 %, fedprox by these differences above."""
    runs = [a_run(upper, "fedavg", seed, 0.5 + 0.1 * seed) for seed in range(len(differences))]
    return runs + [a_run(upper, "fedprox", seed, 0.5 + 0.1 * seed + more, PROX) for seed, more in enumerate(differences)]


def cells(found: Comparison, block: int = 0) -> list[list[str]]:
    from fedsim.report.comparison.cells import blocks

    shown = blocks(found)[block]
    return [["", *shown.titles], *([row.name, *texts] for row, texts in zip(shown.rows, shown.cells(), strict=True))]


def test_ends_costs_and_the_target_stand_apart(tmp_path: Path) -> None:
    found = compared(two(tmp_path))
    assert cells(found) == [
        ["", "seeds", "accuracy", "worst 10 %"],
        ["fedavg", "3", "60.0 +- 10.0", "30.0 +- 5.0"],
        ["fedprox", "3", "62.0 +- 11.0", "31.0 +- 5.5"],
    ]
    assert cells(found, 1)[:2] == [
        ["", "time", "rounds", "bytes", "updates", "staleness"],
        ["fedavg", "1 min 40", "10", "1.00 kB", "40", "0.5"],
    ]
    assert cells(found, 2)[:2] == [["", "reached", "time", "rounds", "bytes", "updates"], ["fedavg", "3/3", "20 s", "2", "200 B", "8"]]
    assert found.differ == ("strategy",)


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    """1, 2 and 3 points: the interval of three differences 1, 2, 3 is 2 +- 2.48 (tests/test_statistics.py), p 0.0742, and 2 of 8 signs."""
    found = compared(two(tmp_path))
    assert cells(found, 3) == [
        ["", "pairs", "accuracy, points", "95 % interval", "p", "sign flips"],
        ["fedprox", "3", "+2.0", "-0.5 to +4.5", "0.0742", "0.25"],
    ]
    assert "sign flips: 3 seeds cannot decide below 0.25; 6 seeds can" in notes(found)
    assert sentences(found) == [
        "Over 3 seeds, fedprox ended at 62.0 +- 11.0 % accuracy and fedavg at 60.0 +- 10.0 % (mean +- standard deviation): a seed-paired "
        "difference of +2.0 points (95 % t interval -0.5 to +4.5), paired t test p = 0.0742; exact sign-flip p = 0.25."
    ]
    turned = compared(found.runs, baseline="fedprox")
    assert cells(turned, 3)[1][:4] == ["fedavg", "3", "-2.0", "-4.5 to +0.5"]


def test_seeds_that_only_one_has_are_not_paired(tmp_path: Path) -> None:
    runs = [*two(tmp_path), a_run(tmp_path, "fedprox", 7, 0.1, PROX)]
    found = compared(runs)
    assert found["fedprox"].against == compared(runs[:-1])["fedprox"].against
    assert "fedprox has 3 seeds in common with fedavg: 0, 1, 2; the others are not paired" in notes(found)


def test_seeds_of_data_that_have_changed_are_not_paired(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, "fedavg", seed, 0.5, data="ab") for seed in (0, 1)]
    runs += [a_run(tmp_path, "fedprox", seed, 0.6, PROX, data=data) for seed, data in enumerate(("ab", "cd"))]
    found = compared(runs)
    assert found["fedprox"].against is not None and found["fedprox"].against.number == 1
    assert "fedprox and fedavg learnt from other data at seed 1: not paired; a file has changed since" in notes(found)


def test_without_accuracy_losses_are_compared_and_what_diverged_is_told(tmp_path: Path) -> None:
    """Differences of 0.5 and 0.7: mean 0.6, error 0.1, and 12.706 of them to each side."""
    runs = []
    for variant, text, losses in (("a", BASE, (1.0, 1.0, 1.0)), ("b", PROX, (1.5, 1.7, float("nan")))):
        for seed, loss in enumerate(losses):
            runs.append(a_run(tmp_path, variant, seed, 0.0, text, final={"test/accuracy": None, "test/loss": loss}))
    found = compared(runs)
    assert cells(found)[1:] == [["a", "3", "1", "0.0 +- 0.0"], ["b", "3", "1.6 +- 0.14", "0.0 +- 0.0"]]
    assert cells(found, 3) == [
        ["", "pairs", "test loss", "95 % interval", "p", "sign flips"],
        ["b", "2", "+0.6", "-0.671 to +1.87", "0.11", "0.50"],
    ]
    assert "b: 1 of 3 seeds ended without a finite test loss, in no mean" in notes(found)


def test_one_seed_tells_nothing_of_chance(tmp_path: Path) -> None:
    found = compared([a_run(tmp_path, "fedavg", 0, 0.5), a_run(tmp_path, "fedprox", 0, 0.6, PROX)])
    assert "one seed tells nothing of chance: no interval and no p; six seeds can (`sweep: {seeds: 0..5}`)" in notes(found)
    assert sentences(found) == [] and cells(found)[1][2] == "50.0 %" and "against" not in written(found)


def test_a_miss_is_later_than_all_and_never_dropped(tmp_path: Path) -> None:
    """Of 20 s, 40 s and a miss the median is 40 s; of 20 s and two misses at 100 s it is only known to be more than 100 s."""
    slow = HIT | {"seconds": 40.0}
    runs = [a_run(tmp_path, "a", seed, 0.5, hit=hit) for seed, hit in enumerate((HIT, slow, None))]
    runs += [a_run(tmp_path, "b", seed, 0.5, PROX, hit=hit) for seed, hit in enumerate((HIT, None, None))]
    found = compared(runs)
    assert [row[1:3] for row in cells(found, 2)[1:]] == [["2/3", "40 s"], ["1/3", "> 1 min 40"]]
    assert (found["b"].at_target("seconds"), found["a"].at_target("seconds")) == ((100.0, True), (40.0, False))
    assert cheapest(found)[0] == "cheapest to 50 % in time: a (40 s); no other gets there in most seeds"


def test_what_is_cheapest_in_each_cost(tmp_path: Path) -> None:
    energy = {"energy/joules": 50.0}
    runs = [a_run(tmp_path, "quick", 0, 0.5, hit=HIT | {"joules": 9.0}, final=energy)]
    runs += [a_run(tmp_path, "lean", 0, 0.5, PROX, hit=HIT | {"seconds": 30.0, "bytes": 90.0, "joules": 8.0}, final=energy)]
    assert cheapest(compared(runs)) == [
        "cheapest to 50 % in time: quick (20 s); next lean (30 s)",
        "cheapest to 50 % in bytes: lean (90 B); next quick (200 B)",
        "cheapest to 50 % in energy: lean (8.00 J); next quick (9.00 J)",
    ]


def test_runs_of_other_tasks_are_marked_and_never_averaged_or_paired(tmp_path: Path) -> None:
    """The same label and other seeds, but other data: two rows."""
    other = BASE.replace("digits", "mnist")
    runs = [a_run(tmp_path / "x", "fedavg", seed, 0.5) for seed in (0, 1)] + [
        a_run(tmp_path / "y", "fedavg", seed, 0.9, other) for seed in (2, 3)
    ]
    found = compared(runs)
    assert [(row.name, row.task, len(row.ends), row.against) for row in found.rows] == [
        ("fedavg, data digits", "A", 2, None),
        ("fedavg, data mnist", "B", 2, None),
    ]
    assert "different tasks, never averaged and not set against each other: A: data digits; B: data mnist" in notes(found)
    assert cells(found)[0][:2] == ["", "task"] and cheapest(found) == []


def test_a_grid_of_tasks_has_a_baseline_in_each(tmp_path: Path) -> None:
    runs = []
    for alpha in ("0.1", "1"):
        for seed in (0, 1):
            for name, text in (("fedavg", BASE), ("fedprox", PROX)):
                scenario = text.replace("alpha: 0.5", f"alpha: {alpha}")
                runs.append(a_run(tmp_path, name, seed, 0.5 + seed / 10, scenario, changed={"task.partition.alpha": alpha}))
    found = compared(runs, baseline="fedavg")
    assert {row.name: row.baseline for row in found.rows} == {
        "fedavg alpha 0.1": "",
        "fedavg alpha 1": "",
        "fedprox alpha 0.1": "fedavg alpha 0.1",
        "fedprox alpha 1": "fedavg alpha 1",
    }
    alike = compared(runs, baseline="strategy=fedprox", where=["alpha=1"])
    assert [(row.name, row.baseline) for row in alike.rows] == [("fedavg alpha 1", "fedprox alpha 1"), ("fedprox alpha 1", "")]
    grid = written(found, by="alpha").splitlines()
    at = grid.index(next(line for line in grid if line.startswith("  accuracy at the end, by alpha")))
    assert grid[at].split()[-2:] == ["0.1", "1"]
    assert [line.split() for line in grid[at + 1 : at + 3]] == [[name, *["55.0", "+-", "7.1"] * 2] for name in ("fedavg", "fedprox")]


def test_a_run_that_was_lengthened_is_a_row_of_its_own(tmp_path: Path) -> None:
    runs = [
        a_run(tmp_path, "a", 0, 0.5, BASE + "stop: {rounds: 10}\n"),
        a_run(tmp_path, "a", 1, 0.9, BASE + "stop: {rounds: 99}\n", resumed=[{}]),
    ]
    write_sweep(tmp_path, [run.path.name for run in runs])
    assert [row.name for row in compared(runs).rows] == ["a, rounds 10", "a, rounds 99"]


def test_best_values_only_where_asked_and_marked(tmp_path: Path) -> None:
    run = a_run(tmp_path, "a", 0, 0.5)
    line = (run.path / "metrics.jsonl").read_text()
    (run.path / "metrics.jsonl").write_text(line.replace('"test/accuracy": 0.5', '"test/accuracy": 0.8') + line)
    assert "80.0" not in written(compared([run]))
    found = compared([RunFolder(run.path)], best=True)
    assert cells(found)[0][-1] == "best (chosen on test)" and cells(found)[1][-1] == "80.0 %"
    (run.path / "metrics.jsonl").write_text("{}\n" + line)  # damaged where only the best is looked for
    assert not compared([RunFolder(run.path)]).broken
    assert "line 1 is broken" in compared([RunFolder(run.path)], best=True).broken[0]
    assert any(note.startswith("best: the best evaluation of each run, chosen on the test samples") for note in notes(found))


@pytest.fixture
def root(folder: Path) -> Path:
    """The sweep `demo` in the working folder."""
    upper = folder / "runs/demo/20261121-142530-3f9a1c"
    return write_sweep(upper, [run.path.name for run in two(upper)])


def test_what_is_not_finished_is_left_out_and_named(root: Path) -> None:
    info = root / "fedprox-seed2/run.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"status": "running"}))
    shown = call("compare", "demo")
    assert shown.exit_code == 0 and "left out: fedprox seed 2 (killed, at round 10)" in shown.stdout
    assert "  fedprox     2 of 3" in shown.stdout


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("metrics.jsonl", "{}\n", "metrics.jsonl: broken (line 1: an object with a `round` is due)"),
        ("metrics.jsonl", '{"round": 3}\n', "metrics.jsonl: its last line is not the end that run.json tells"),
        ("run.json", "{", "run.json: broken"),
        ("scenario.yaml", "a: [", "scenario.yaml: broken"),
        ("events/000000.parquet", "PAR1", "000000.parquet: unreadable event segment"),
    ],
)
def test_what_is_damaged_is_named_and_the_rest_compared(root: Path, file: str, content: str, said: str) -> None:
    folder = root / "fedavg-seed0"
    if file.startswith("events"):  # read only where something was dropped
        record = {**END, "work/dropped": 1, "test/accuracy": 0.5}
        info = json.loads((folder / "run.json").read_text()) | {"final": record}
        (folder / "run.json").write_text(json.dumps(info))
        (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    (folder / file).write_text(content)
    shown = call("compare", "demo")
    plain = " ".join(shown.stdout.split())
    assert shown.exit_code == 1 and "left out, damaged: " in plain and said in plain
    assert "fedprox 3 " in plain


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dmeo"], "no run `dmeo` under runs/; nearest: demo"),
        (["demo", "--baseline", "fedporx"], "unknown baseline `fedporx`; did you mean `fedprox`?"),
        (["demo", "--by", "strategie"], "unknown key `strategie`; did you mean `strategy`?"),
        (["demo", "--by", "lr"], "`lr` is the same in all of them: 0.1; what differs: strategy"),
        (["demo", "--by", "server_rl"], "unknown key `server_rl`; did you mean `server_lr`?"),
        (["demo", "--format", "cvs"], "unknown format `cvs`; did you mean `csv`?"),
        (["demo", "train.lr=0.3"], "no run has train.lr=0.3; there is 0.1"),
        (["train.lr=0.1"], "no run given; try: fedsim compare NAME"),
    ],
)
def test_unknown_words_are_answered_with_the_nearest(root: Path, words: list[str], said: str) -> None:
    result = call("compare", *words)
    assert (result.exit_code, result.stdout) == (2, "") and said in result.stderr


def test_nothing_to_compare(folder: Path) -> None:
    assert "runs/ has no runs yet" in refused("compare", "demo")


@pytest.mark.parametrize("width", [60, 100])
def test_tables_fit_and_wide_signs_stand_below_each_other(tmp_path: Path, width: int) -> None:
    """Columns that have no room go below; each number is there."""
    runs = [
        a_run(tmp_path, name, seed, 0.5 + seed / 8, text)
        for name, text in (("每轮 同步", BASE), ("ein sehr langer Name " * 3, PROX))
        for seed in (0, 1)
    ]
    lines = written(compared(runs), width=width).splitlines()
    assert max(map(cell_len, lines)) <= width
    table = [line for line in lines if "+-" in line and line.startswith("  ") and "Over" not in line][:2]
    assert len({cell_len(line) for line in table}) == 1 and all("56.2 +- 8.8" in line for line in table)


def test_names_that_are_cut_differ_still(tmp_path: Path) -> None:
    names = [f"client_weights [{first}, 1, 1, 1, 1, 1, 1]" for first in (2, 3)]
    lines = written(compared([a_run(tmp_path, name, 0, 0.5, text) for name, text in zip(names, (BASE, PROX), strict=True)])).splitlines()
    cut = [line.split("  ")[1] for line in lines if line.startswith("  client_weights [") and ".." in line]
    assert {cut.count(name) for name in cut} == {len(cut) // 2} and max(map(len, cut)) < len(names[0])


def test_formats_have_the_same_numbers(tmp_path: Path) -> None:
    found = compared(two(tmp_path))
    texts = {name: written(found, name) for name in NAMES}
    assert "| fedprox | 3 | 62.0 ± 11.0 | 31.0 ± 5.5 |" in texts["markdown"].splitlines()
    assert r"fedprox & 3 & 62.0 $\pm$ 11.0 & 31.0 $\pm$ 5.5 \\" in texts["latex"].splitlines()
    assert texts["latex"].count(r"\toprule") == texts["latex"].count(r"\end{tabular}") == 4
    assert r"to 50 \% & reached" in texts["latex"]
    tables = [part.split(r"\end{tabular}")[0].splitlines() for part in texts["latex"].split(r"\begin{tabular}")[1:]]
    for head, *lines in tables:  # as many cells as columns
        assert {line.count(" & ") for line in lines if line.endswith(r"\\")} == {head.count("r")}
    [_, row] = csv.DictReader(texts["csv"].splitlines())
    assert float(row["final_mean"]) == pytest.approx(0.62) and float(row["difference"]) == pytest.approx(0.02)
    assert (row["seeds"], row["baseline"], row["reached"], row["to_target_seconds"]) == ("0 1 2", "fedavg", "3", "20.0")
    content = json.loads(texts["json"])
    assert content["variants"][1]["variant"] == "fedprox" and content["variants"][0]["difference"] is None
    assert content["differing"] == {"strategy": {"fedavg": "fedavg", "fedprox": "fedprox"}} and content["sentences"] == sentences(found)
    [_, _, *rows] = csv.DictReader(written(found, "csv", by="strategy").splitlines())
    assert rows == [] and "strategy" in written(found, "csv", by="strategy").splitlines()[0]


def test_latex_aligns_deviations_and_has_minus_signs(tmp_path: Path) -> None:
    values = {"[a]": (0.5, 0.9, 0.7), "b": (0.52, 0.5, 0.51)}
    runs = [a_run(tmp_path, name, seed, value, BASE if name == "b" else PROX) for name in values for seed, value in enumerate(values[name])]
    lines = written(compared(runs, baseline="[a]"), "latex").splitlines()
    assert any(line.startswith(r"{[}a] & 3 & 70.0 $\pm$ 20.0 & ") for line in lines)
    assert any(line.startswith(r"b & 3 & 51.0 $\pm$ \phantom{0}1.0 & ") for line in lines)
    assert any(line.startswith("b & 3 & $-$19.0 & $-$7") for line in lines)


def test_names_are_safe_in_tables_of_others(tmp_path: Path) -> None:
    found = compared([a_run(tmp_path, "a_b|50 %", 0, 0.5), a_run(tmp_path, "c", 0, 0.5, PROX)])
    assert r"| a\_b\|50 % | 1 |" in written(found, "markdown")
    assert r"a\_b\textbar{}50 \% & 1 &" in written(found, "latex")
