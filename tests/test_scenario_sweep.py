"""Sweeps, the smoke setting, and lists on the command line."""

from pathlib import Path

import pytest

from fedsim.base.errors import ScenarioError, SettingError
from fedsim.scenario import Loaded, load
from fedsim.settings.values import Constant

PLAIN = "task: {data: digits}\nstrategy: fedavg\n"


def runs_of(folder: Path, text: str, *overrides: str, smoke: bool = False, sweeping: bool = False) -> list[Loaded]:
    (folder / "test.yaml").write_text(text)
    return load(folder / "test.yaml", overrides, smoke, sweeping)


def problems_of(folder: Path, text: str, *overrides: str, smoke: bool = False, sweeping: bool = False) -> list[str]:
    with pytest.raises(ScenarioError) as error:
        runs_of(folder, text, *overrides, smoke=smoke, sweeping=sweeping)
    return [f"{problem.line}:{problem.column} {problem.message}" for problem in error.value.problems]


def test_a_sweep_is_the_product_of_variants_grid_zip_rows_and_seeds(tmp_path: Path) -> None:
    text = (
        PLAIN + "sweep:\n  variants: {plain: {}, near: {strategy: {name: fedprox, pull: 0.5}}}\n"
        "  grid: {train.lr: [0.03, 0.1]}\n  zip: {train.batch: [8, 16], schedule.cohort: [5, 10 %]}\n  seeds: 0..1\n"
    )
    runs = runs_of(tmp_path, text)
    assert len(runs) == len({run.folder for run in runs}) == len({run.hash for run in runs}) == 2 * 2 * 2 * 2
    assert [run.folder for run in runs[:3]] == [
        "plain-lr0.03-batch8-cohort5-seed0",
        "plain-lr0.03-batch8-cohort5-seed1",
        "plain-lr0.03-batch16-cohort10%-seed0",
    ]
    last = runs[-1]
    assert last.changed == {"train.lr": "0.1", "train.batch": "16", "schedule.cohort": "10 %"}
    assert (last.label, last.variant, last.seed) == ("near lr 0.1 batch 16 cohort 10 % seed 1", "near", 1)
    assert (last.scenario.strategy.name, last.scenario.train.batch, last.scenario.seed) == ("fedprox", 16, 1)
    problem = last.problem(SettingError("train.lr", "too high"))
    assert (problem.file, problem.line, problem.column) == (str(tmp_path / "test.yaml"), 5, 27)
    assert "sweep" not in last.resolved


def test_settings_with_the_same_last_word_are_told_apart_or_once(tmp_path: Path) -> None:
    swaps = ", ".join(f"{{name: swap_labels, pair: [{pair}], share: 0}}" for pair in ("0, 1", "8, 9"))
    swept = "sweep:\n  zip: {task.shift.0.share: [0.8, 0.8], task.shift.1.share: [0.8, 0]}\n"
    runs = runs_of(tmp_path, PLAIN.replace("digits", f"digits, shift: [{swaps}]") + swept)
    assert [run.label for run in runs] == ["share 0.8 seed 0", "task.shift.0.share 0.8 task.shift.1.share 0 seed 0"]


def test_without_a_sweep_there_is_one_run_without_a_folder(tmp_path: Path) -> None:
    (run,) = runs_of(tmp_path, PLAIN + "seed: 3\n")
    assert (run.folder, run.label, run.variant, run.changed) == ("", "seed 3", "", {})


def test_a_variant_may_sweep_parts_and_its_settings_never_leak(tmp_path: Path) -> None:
    text = (
        PLAIN
        + "schedule: {cohort: 5}\nsweep: {variants: {a: {}, b: {schedule: {name: buffered, size: 2}}, c: {schedule: {deadline: 1 s}}}}\n"
    )
    a, b, c = [run.flat for run in runs_of(tmp_path, text)]
    assert (a["schedule"], a["schedule.cohort"]) == ("rounds", "5")
    assert (b["schedule"], b["schedule.size"], "schedule.cohort" in b) == ("buffered", "2", False)
    assert (c["schedule"], c["schedule.cohort"], c["schedule.deadline"]) == ("rounds", "5", "1 s")


def test_every_variant_is_checked_before_any_is_returned(tmp_path: Path) -> None:
    text = PLAIN + "sweep:\n  variants:\n    good: {}\n    bad: {strategy: {name: fedprox, pull: near}}\n    worse: {seed: -1}\n"
    assert problems_of(tmp_path, text) == ["6:43 strategy.pull: `near` is no number", "7:19 seed: `-1`: at least 0 is due"]


@pytest.mark.parametrize(
    ("sweep", "problem"),
    [
        ("{grids: {seed: [1]}}", "3:9 unknown key `sweep.grids`; did you mean `sweep.grid`?"),
        ("{grid: {train.lr: 0.1}}", "3:26 sweep.grid.train.lr: a list is due, or a range: `0..4`"),
        ("{grid: {train.rl: [0.1]}}", "3:16 unknown key `train.rl`; did you mean `train.lr`?"),
        ("{zip: {train.lr: [1, 2], seed: [1]}}", "3:14 sweep.zip: lists of one length are due, not train.lr 2, seed 1"),
        ("{seeds: 0-4}", "3:16 sweep.seeds: `0-4` reads as a subtraction or a date; a range is `0..4`"),
        ("{seeds: 0..1, grid: {seed: [1]}}", "3:29 `seed` is swept twice"),
        ("{variants: {a: {sweep: {}}}}", "3:24 `sweep` can't stand in a variant"),
        ("{variants: {a: fedavg}}", "3:23 sweep.variants.a: a partial scenario is due; `{}` changes nothing"),
        ("yes", "3:8 sweep: a mapping is due: `{variants, grid, zip, seeds}`"),
    ],
)
def test_problems_of_sweeps(tmp_path: Path, sweep: str, problem: str) -> None:
    assert problem in problems_of(tmp_path, PLAIN + f"sweep: {sweep}\n")


def test_a_key_both_swept_and_set_on_the_command_line_is_an_error(tmp_path: Path) -> None:
    text = PLAIN + "sweep: {variants: {a: {train: {batch: 8}}}, grid: {train.lr: [0.1]}, seeds: [1]}\n"
    for override, key in (("train.lr=1", "train.lr"), ("seed=3", "seed"), ("train.batch=4", "train.batch")):
        assert problems_of(tmp_path, text, override) == [
            f"0:1 `{key}` is swept in the file; set it there, or take `sweep` out with `sweep=null`"
        ]
    (run,) = runs_of(tmp_path, text, "sweep=null", "train.lr=1")
    assert (run.flat["train.lr"], run.folder) == ("1", "")
    assert [run.folder for run in runs_of(tmp_path, text, "sweep.seeds=[4, 5]")] == ["a-lr0.1-seed4", "a-lr0.1-seed5"]


def test_lists_on_the_command_line_are_swept_only_where_that_is_asked_for(tmp_path: Path) -> None:
    for override, problem in (
        ("train.batch=8,16", "0:13 train.batch"),
        ("seed=0..4", "0:6 seed"),
        ("train.lr=[0.1, 0.3]", "0:10 train.lr"),
        ("strategy=fedavg,fedprox", "0:10 strategy"),
    ):
        assert problems_of(tmp_path, PLAIN, override) == [f"{problem}: several values are for `fedsim sweep`; one is due"]
    assert problems_of(tmp_path, PLAIN, "seed=[]", sweeping=True) == ["0:6 seed: one value is due, not a list; a `sweep` runs several"]
    runs = runs_of(tmp_path, PLAIN, "train.batch=8,16", "strategy=[fedavg, fedprox]", "seed=0..1", "evaluate.metrics=[loss]", sweeping=True)
    assert [run.folder for run in runs[:3]] == [
        "batch8-strategyfedavg-seed0",
        "batch8-strategyfedavg-seed1",
        "batch8-strategyfedprox-seed0",
    ]
    assert len(runs) == 8
    assert all(len(run.scenario.evaluate.metrics) == 1 for run in runs)


def test_smoke_is_merged_last_before_the_command_line(tmp_path: Path) -> None:
    (run,) = runs_of(tmp_path, PLAIN + "stop: {seconds: 1 h}\n", smoke=True)
    assert (run.scenario.stop.rounds, run.scenario.stop.seconds) == (2, 3600)
    own = PLAIN + "smoke: {task: {partition: {nodes: 4}}, stop: {rounds: 1}}\nsweep: {grid: {stop.rounds: [7, 8]}}\n"
    runs = runs_of(tmp_path, own, smoke=True)
    assert [(run.scenario.stop.rounds, run.scenario.task.partition.nodes) for run in runs] == [(1, 4), (1, 4)]
    assert [run.scenario.stop.rounds for run in runs_of(tmp_path, own)] == [7, 8]
    assert "3:9 `sweep` can't stand in `smoke`" in problems_of(tmp_path, PLAIN + "smoke: {sweep: {}}\n", smoke=True)


def test_a_parent_file_s_sweep_can_be_changed_or_forgotten(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(PLAIN + "sweep: {variants: {a: {}, b: {seed: 1}}, seeds: 0..1}\n")
    assert [run.folder for run in runs_of(tmp_path, "extends: base.yaml\nsweep: {variants: {b: null}}\n")] == ["a-seed0", "a-seed1"]
    assert [run.folder for run in runs_of(tmp_path, "extends: base.yaml\nsweep: null\n")] == [""]


def test_seeds_stand_in_folders_only_where_there_are_several(tmp_path: Path) -> None:
    assert [run.folder for run in runs_of(tmp_path, PLAIN + "sweep: {variants: {a: {}, b: {}}}\n")] == ["a", "b"]
    assert [run.folder for run in runs_of(tmp_path, PLAIN + "sweep: {variants: {a: {}, b: {seed: 1}}}\n")] == ["a-seed0", "b-seed1"]
    assert [run.folder for run in runs_of(tmp_path, PLAIN + "sweep: {seeds: [3]}\n")] == ["seed3"]


def test_runs_of_a_sweep_share_what_they_have_in_common(tmp_path: Path) -> None:
    runs_of(tmp_path, PLAIN)  # what is imported and kept at the first load
    runs = runs_of(tmp_path, PLAIN + "sweep: {grid: {train.lr: [0.1, 0.2]}, seeds: 0..149}\n")
    assert len(runs) == 300 and {run.scenario.train.lr for run in runs} == {Constant(0.1), Constant(0.2)}
    assert [run.seed for run in runs[:3]] == [0, 1, 2] and runs[299].resolved.count("seed: 149  #") == 1


def test_each_run_of_a_sweep_is_checked_though_settings_are_shared(tmp_path: Path) -> None:
    text = PLAIN + "sweep: {variants: {a: {}, b: {train: {lr: -1}}}, seeds: 0..2}\n"
    assert problems_of(tmp_path, text) == ["3:43 train.lr: `-1`: at least 0 is due"]


def test_a_sweep_without_bounds_or_without_a_run_is_refused(tmp_path: Path) -> None:
    for sweep, problem in (
        ("seeds: 0..999999999", "3:16 sweep.seeds: `0..999999999` holds 1,000,000,000 numbers; at most 100,000 are due"),
        ("seeds: 0..20000", "3:16 sweep: 20,001 runs; at most 10,000 are due"),
        ("grid: {train.lr: []}", "3:26 sweep.grid.train.lr: an empty list; at least one value is due"),
    ):
        assert problems_of(tmp_path, PLAIN + f"sweep: {{{sweep}}}\n") == [problem]
