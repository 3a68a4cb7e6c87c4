"""The closing table: what its columns say, and which of them stay where there is little room."""

from pathlib import Path
from typing import Any

import pytest
from folders import write_run, write_sweep
from rich.console import Console

from fedsim.base.text import energy
from fedsim.report.columns import columns
from fedsim.report.figures.plots import draw
from fedsim.report.style import drawn, variants_of
from fedsim.report.tables import summary
from fedsim.run.folders import RunFolder

END = {"round": 9, "time/seconds": 90.0, "traffic/bytes": 9000, "work/updates": 45, "test/accuracy": 0.9}
HIT = {"round": 2.0, "seconds": 20.0, "bytes": 2000.0, "updates": 10.0, "apart": 0.1}


def a_run(folder: Path, variant: str = "a", seed: int = 0, **info: Any) -> RunFolder:
    final = END | info.pop("final", {})
    known = {"label": f"{variant} seed {seed}", "variant": variant, "seed": seed, "target": 0.8, "target_reached": HIT, "wall_seconds": 1.0}
    return RunFolder(write_run(folder / f"{variant}-seed{seed}", [], [final], **known | info))


def lines(runs: list[RunFolder], width: int = 100) -> list[str]:
    console = Console(width=width, force_terminal=False, highlight=False)
    with console.capture() as capture:
        console.print(summary(runs, (), width))
    return capture.get().splitlines()


def table(runs: list[RunFolder]) -> dict[str, list[str]]:
    """Titles, with their group, and cells by column."""
    variants = variants_of(runs)
    return {f"{one.group} {one.title}".strip(): [one.cell(variant) for variant in variants] for one in columns(variants)}


def test_costs_are_those_at_the_target_and_the_whole_runs_stand_apart(tmp_path: Path) -> None:
    run = a_run(tmp_path, final={"energy/joules": 9000.0}, target_reached=HIT | {"joules": 2000.0})
    assert table([run]) == {
        "at the end accuracy": ["90.0 %"],
        **{"to 80 % time": ["20 s"], "to 80 % bytes": ["2.00 kB"], "to 80 % energy": ["2.00 kJ"], "to 80 % updates": ["10"]},
        **{"in all bytes": ["9.00 kB"], "in all energy": ["9.00 kJ"], "in all updates": ["45"]},
    }
    assert table([a_run(tmp_path, "b", target=None, target_reached=None)]) == {
        "accuracy": ["90.0 %"],
        "bytes": ["9.00 kB"],
        "updates": ["45"],
    }
    timeless = a_run(tmp_path, "c", final={"time/seconds": 0.0})
    assert table([timeless])["to 80 % rounds"] == ["2"] and "to 80 % time" not in table([timeless])


def test_what_has_not_finished_is_in_no_mean(tmp_path: Path) -> None:
    bad = {"status": "failed", "reason": "diverged", "final": {"test/accuracy": 0.1}, "target_reached": None}
    runs = [a_run(tmp_path, "a", 0), a_run(tmp_path, "a", 1), a_run(tmp_path, "a", 2, **bad), a_run(tmp_path, "b", 0, **bad)]
    found = table(runs)
    assert found["seeds"] == ["2 of 3", "0 of 1"] and found["at the end accuracy"] == ["90.0 +- 0.0", "-"]
    assert found["to 80 % time"] == ["20 s", "-"] and found["in all bytes"] == ["9.00 kB", "-"]
    assert lines(runs)[3].endswith("2x 60 s, 1x failed: diverged")


def test_pictures_show_finished_runs_and_name_the_others(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, "a", 0, status="failed"), a_run(tmp_path, "b", 0), a_run(tmp_path, "b", 1, status="running")]
    shown, missing = drawn(runs)
    assert [(variant.name, variant.runs) for variant in shown] == [("b", (runs[1],))] and missing == "a (failed), b (running)"
    assert shown[0].colour == variants_of(runs)[1].colour
    alone, missing = drawn([runs[0], runs[2]])
    assert [variant.name for variant in alone] == ["a (failed)", "b (running)"] and missing == ""
    assert [file.name for file in draw([runs[2]])] == ["accuracy.png"]


def test_where_evaluations_are_sparse_it_says_so(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, "a", target_reached=HIT | {"apart": 0.5}), a_run(tmp_path, "b")]
    assert table(runs)["to 80 % time"] == ["~20 s", "20 s"]
    assert any(line.startswith("  ~ the evaluations around the crossing lie far apart") for line in lines(runs))


def test_the_cheapest_to_the_target_is_named_where_there_is_a_choice(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, "quick"), a_run(tmp_path, "lean", target_reached=HIT | {"seconds": 30.0, "bytes": 500.0})]
    assert "  cheapest to 80 %: time quick (20 s), bytes lean (500 B)" in lines(runs)
    missed = [runs[0], a_run(tmp_path, "never", target_reached=None, final={"test/accuracy": 0.7})]
    assert not any(line.startswith("  cheapest") for line in lines(missed))


def test_times_to_target_are_medians_and_say_how_many_missed(tmp_path: Path) -> None:
    hits = [HIT, HIT | {"seconds": 40.0}, None]
    found = table([a_run(tmp_path, "a", seed, target_reached=hit) for seed, hit in enumerate(hits)])
    assert found["to 80 % time"] == ["40 s (2/3)"] and found["seeds"] == ["3"]


def test_peers_are_told_by_their_mean_their_worst_and_their_averaged_model(tmp_path: Path) -> None:
    both = {"nodes/accuracy_worst": 0.3, "average/accuracy": 0.95, "clients/accuracy_worst_10": 0.2}
    peers = a_run(tmp_path, "ring", peers=True, final=both)
    found = table([peers])
    assert [found[f"at the end {name}"] for name in ("node mean", "worst node", "averaged", "worst 10 %")] == [
        *(["90.0 %"], ["30.0 %"], ["95.0 %"], ["20.0 %"])
    ]
    mixed = [peers, a_run(tmp_path, "server", peers=False)]
    found = table(mixed)
    assert found["at the end accuracy"] == ["90.0 %", "90.0 %"] and found["at the end worst node"] == ["30.0 %", "-"]
    assert "  the accuracy of peers is the mean over their models" in lines(mixed)


def test_several_seeds_of_a_loss_have_a_deviation(tmp_path: Path) -> None:
    loss = [{"test/accuracy": None, "test/loss": value} for value in (1.0, 2.0)]
    assert table([a_run(tmp_path, "a", seed, final=one) for seed, one in enumerate(loss)])["at the end loss"] == ["1.5 +- 0.71"]


@pytest.mark.parametrize(("width", "kept"), [(100, 6), (80, 5), (66, 3), (56, 2)])
def test_columns_are_left_out_before_names_are_cut(tmp_path: Path, width: int, kept: int) -> None:
    names = ["fedprox lr 0.1 batch 16", "fedprox lr 0.1 batch 32"]
    runs = [a_run(tmp_path, name) for name in names]
    shown = lines(runs, width)
    rows = [line for line in shown if line.startswith("  fedprox")]
    assert [row[2:25] for row in rows] == names and all(len(line) <= width for line in shown[1:5])
    titles = shown[shown.index(next(line for line in shown if "ended by" in line))].split("ended by")[0].split()
    assert titles == ["accuracy", "time", "bytes", "updates", "bytes", "updates"][:kept]


def test_names_that_have_no_room_at_all_keep_both_ends(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, f"{'x' * 60}{end}") for end in ("one", "two")]
    assert [line.split()[0][-3:] for line in lines(runs, 60) if line.startswith("  xx")] == ["one", "two"]


def test_a_whole_sweep_fits(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / "demo", "a"), a_run(tmp_path / "demo", "b")]
    write_sweep(tmp_path / "demo", [run.path.name for run in runs])
    assert lines(runs, 80)[0] == "demo  finished 2 of 2  in 2 s            target 80 %, confirmed by 3 evaluations"


def test_energy_for_people() -> None:
    assert [energy(joules) for joules in (0, 0.5, 45.4, 1234, 2e6, 3e12)] == ["0 J", "500 mJ", "45.4 J", "1.23 kJ", "2.00 MJ", "3 TJ"]
