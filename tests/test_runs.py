"""Whole runs on small data: what lies in a run's folder, where runs end, when they are measured, and what must not change a result."""

import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from launch import TASKS, call, simulate, write

from fedsim.report.inspection import inspect_run
from fedsim.run.crossing import crossing
from fedsim.run.folders import RunFolder, find_runs
from fedsim.run.runner import model_hash
from fedsim.scenario import load

pytestmark = pytest.mark.pictures

SWEEP = """\
extends: small.yaml
world: {faults: {crash: 10 %, lost: 10 %}}
evaluate: {every: 2 rounds, target: 15 %, metrics: [accuracy, loss, clients, nodes]}
sweep:
  variants:
    rounds: {strategy: fedavg}
    buffer: {strategy: fedbuff, schedule: {name: buffered, size: 2}}
    peers: {strategy: dsgd, schedule: gossip, world: {faults: {lost: 0 %}}}
"""
COLUMNS = ["time", "kind", "node", "job", "version", "staleness", "bytes_down", "bytes_up", "down", "work", "up", "steps"]
FILES = {"scenario.yaml", "run.json", "metrics.jsonl", "events", "model.safetensors", "log.txt", "labels.npz", "checkpoints"}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep of three variants through the command line: its upper folder, and what was printed."""
    folder = tmp_path_factory.mktemp("swept")
    write(folder)
    result = call("run", write(folder, SWEEP, "three.yaml"), "--runs", folder / "runs")
    assert result.exit_code == 0, result.output
    return folder / "runs" / "three" / "latest", result.stdout


# The folder


def test_the_folder_of_a_sweep(swept: tuple[Path, str]) -> None:
    upper, _ = swept
    assert upper.is_symlink() and not Path(os.readlink(upper)).is_absolute()
    sweep = json.loads((upper / "sweep.json").read_text())
    assert sweep["name"] == "three" and sweep["runs"] == ["rounds", "buffer", "peers"]
    stamp = upper.resolve().name
    assert len(stamp) == len("20261121-142530-3f9a1c") and int(stamp[:8]) > 20260000
    pictures = {file.name for file in (upper / "figures").iterdir()}
    assert {"accuracy.png", "loss.png", "staleness.png", "labels.png"} <= pictures
    assert all(file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for file in (upper / "figures").iterdir())


def test_the_folder_of_a_run(swept: tuple[Path, str]) -> None:
    for run in find_runs([str(swept[0])]):
        assert set(os.listdir(run.path)) >= FILES
        assert not list(run.path.rglob("*.part"))
        assert run.label_counts is not None and run.label_counts.sum() == 1438  # of 1,797; every fifth is for testing
        assert run.events.column_names == COLUMNS


def test_run_json(swept: tuple[Path, str]) -> None:
    folder = swept[0].parent.parent.parent
    words = [str(folder / "three.yaml"), "--runs", str(folder / "runs")]
    info = find_runs([str(swept[0] / "buffer")])[0].info
    assert (info["name"], info["label"], info["variant"], info["seed"]) == ("three", "buffer seed 0", "buffer", 0)
    assert (info["status"], info["reason"], info["nodes"], info["parameters"]) == ("finished", "4 rounds", 8, 650)
    assert len(info["hash"]) == 6 and len(info["model"]) == len(info["data"]) == 64
    assert info["target"] == 0.15 and info["command"] == shlex.join(["fedsim", "run", *words]) and info["client_steps_per_second"] > 0
    assert {"python", "torch", "numpy", "flwr", "mlflow"} <= set(info["versions"])
    assert {"version", "commit", "created", "device", "plan", "plan_reason", "threads", "groups", "wall_seconds", "final"} <= set(info)


def test_metric_names(swept: tuple[Path, str]) -> None:
    base = {"round", "version", "time/seconds", "time/wall_seconds", "traffic/bytes_up", "traffic/bytes_down", "traffic/bytes_cross"}
    base |= {"traffic/bytes", "work/updates", "work/steps", "work/dropped", "staleness/mean", "test/accuracy", "test/loss"}
    base |= {"clients/accuracy_mean", "clients/accuracy_worst_10", "nodes/accuracy_mean", "nodes/accuracy_worst"}
    for run in find_runs([str(swept[0])]):
        peers = {"average/accuracy", "nodes/spectral_gap"} if run.info["peers"] else set()
        assert [set(record) for record in run.metrics] == [base | peers] * 3
        assert [record["round"] for record in run.metrics] == [0, 2, 4]
        assert run.info["final"] == run.metrics[-1]


def test_events_hold_and_inspect_says_so(swept: tuple[Path, str]) -> None:
    runs = find_runs([str(swept[0])])
    assert all(inspect_run(run)[1] for run in runs)
    shown = call("inspect", swept[0])
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [str(run.path) for run in runs]
    assert shown.stdout.count("(8 of 8)") == 3 and max(len(line) for line in lines if line.startswith(" ")) <= 80


def test_the_model_is_the_one_recorded(swept: tuple[Path, str]) -> None:
    for run in find_runs([str(swept[0])]):
        [loaded] = load(run.path / "scenario.yaml")
        rows = safetensors.torch.load_file(run.path / "model.safetensors")
        joined = TASKS.get(loaded).layout.join(rows)
        assert model_hash(joined if joined.dim() == 2 else joined[None]) == run.info["model"]


def test_what_is_printed(swept: tuple[Path, str]) -> None:
    lines = swept[1].splitlines()
    assert sum(line.startswith(("rounds seed 0", "buffer seed 0", "peers seed 0")) for line in lines) == 9  # an evaluation a line
    assert [line[:12] for line in lines[:5]] == ["three  round", "  data      ", "  targets   ", "  tests     ", "  nodes     "]
    assert sum(line.startswith("  data ") for line in lines) == 1  # said once of a sweep
    table = lines[14:]
    assert table[0].startswith("three  finished 3 of 3") and table[0].endswith("target 15 %, confirmed by 3 evaluations")
    assert "at the end" in table[1] and "to 15 %" in table[1]
    assert table[2].split("  ")[-1] == "ended by" and [row.split()[0] for row in table[3:6]] == ["rounds", "buffer", "peers"]
    assert all(row.endswith("4 rounds") for row in table[3:6])
    assert any("next: fedsim " in line for line in table)


# Where runs end


@pytest.mark.parametrize(
    ("stop", "reason", "reached"),
    [
        ("rounds=3", "3 rounds", {"round": 3}),
        ("updates=10", "10 updates", {"round": 3, "work/updates": 12}),  # cohorts of 4
        ("steps=16", "16 steps", {"round": 2, "work/steps": 16}),
        ("seconds=10", "10 s", {"time/seconds": 10.0}),
        ("bytes=30kB", "30.0 kB", {"round": 2}),  # 8 messages of 2,672 B a round
        ("loss=2.3", "loss 2.3", {}),
        ("accuracy=15%", "accuracy 15 %", {}),
    ],
)
def test_stop(folder: Path, stop: str, reason: str, reached: dict[str, float]) -> None:
    run = simulate(folder, "stop.rounds=1000", f"stop.{stop}", "evaluate.every=1 rounds")
    assert run.info["reason"] == reason
    assert {name: run.info["final"][name] for name in reached} == reached
    assert run.info["final"] == run.metrics[-1]


def test_stop_by_wall_time(folder: Path) -> None:
    run = simulate(folder, "stop.rounds=1000000", "stop.wall=0.3 s", "evaluate.every=1000 rounds")
    assert run.info["reason"] == "300 ms of wall time" and 0.3 <= run.info["wall_seconds"] < 5


def test_goals_are_means_of_the_last_evaluations(folder: Path) -> None:
    run = simulate(folder, "stop.rounds=60", "stop.accuracy=40%", "evaluate.target=30%", "evaluate.smooth=4", "evaluate.every=1 rounds")
    accuracy = run.column("test/accuracy")
    means = np.convolve(accuracy, np.ones(4) / 4, "valid")  # of records i to i + 3
    first, last = (int(np.flatnonzero(means >= goal)[0]) + 3 for goal in (0.3, 0.4))
    assert run.info["reason"] == "accuracy 40 %" and len(accuracy) == last + 1 < 60
    reached = run.info["target_reached"]
    assert reached == crossing(run.metrics[: first + 1], 0.3, 4) and crossing(run.metrics[:first], 0.3, 4) is None
    assert reached["round"] <= first - 3 + int(np.argmax(accuracy[first - 3 :] >= 0.3))  # at the first that is there, of the four
    assert np.interp(reached["round"], run.column("round"), accuracy) == pytest.approx(0.3)
    assert np.interp(reached["round"], run.column("round"), run.column("traffic/bytes")) == pytest.approx(reached["bytes"])


def test_a_run_that_ends_by_accuracy_ends_where_the_crossing_is_confirmed_and_tells_it(folder: Path) -> None:
    run = simulate(folder, "stop.rounds=60", "stop.accuracy=40%", "evaluate.every=1 rounds")
    assert run.info["reason"] == "accuracy 40 %" and run.info["target"] == 0.4
    assert run.info["target_reached"] == crossing(run.metrics, 0.4, 3) and crossing(run.metrics[:-1], 0.4, 3) is None
    assert run.info["target_reached"]["bytes"] < run.info["final"]["traffic/bytes"]


# When runs are measured


@pytest.mark.parametrize(
    ("settings", "rounds"),
    [
        (("evaluate.every=3 rounds", "stop.rounds=7"), [0, 3, 6, 7]),
        (("stop.rounds=7",), [*range(8)]),
        (("stop.rounds=250", "train.steps=1"), [*range(0, 251, 2)]),
        (("stop.rounds=null", "stop.updates=100"), [0, 10, 20, 25]),
    ],
)
def test_rounds_of_evaluations(folder: Path, settings: tuple[str, ...], rounds: list[int]) -> None:
    assert [record["round"] for record in simulate(folder, *settings).metrics] == rounds


@pytest.mark.parametrize("schedule", ["rounds", "{name: buffered, size: 2}", "{name: ticks, every: 2 s}", "gossip", "pairwise"])
def test_seconds_of_evaluations(folder: Path, schedule: str) -> None:
    strategy = "dsgd" if schedule in ("gossip", "pairwise") else "fedavg"
    run = simulate(folder, f"strategy={strategy}", f"schedule={schedule}", "stop.rounds=null", "stop.seconds=10 s", "evaluate.every=0.7 s")
    assert run.column("time/seconds").tolist() == [*(7 * k / 10 for k in range(15)), 10.0]
    assert run.info["reason"] == "10 s"
    ticks = run.columns["time"][run.columns["kind"] == 5]
    assert ticks.tolist() == [7 * k * run.ticks_per_second // 10 for k in range(15)] + [10 * run.ticks_per_second]


def test_a_hundred_evaluations_where_the_end_is_a_time(folder: Path) -> None:
    assert simulate(folder, "stop.rounds=null", "stop.seconds=5 s").column("time/seconds").tolist() == [k / 20 for k in range(101)]


@pytest.mark.parametrize(
    ("every", "settings", "rounds"),
    [
        ("4 rounds", ("stop.rounds=9",), [0, 4, 8, 9]),  # and in the end
        ("3 rounds", ("evaluate.every=2 rounds", "stop.rounds=8"), [0, 4, 6, 8]),  # the first evaluation from 3, 6 on
        ("4 rounds", ("stop.rounds=1000", "stop.bytes=150 kB"), [0, 4, 8, 8]),  # 21,376 B a round: the end is known in round 8 only
        ("50 rounds", ("stop.accuracy=30%", "evaluate.smooth=1"), []),
    ],
)
def test_a_metric_has_its_own_interval(folder: Path, every: str, settings: tuple[str, ...], rounds: list[int]) -> None:
    metrics = f"evaluate.metrics=[accuracy, {{name: loss, every: {every}}}]"
    run = simulate(folder, "evaluate.every=1 rounds", metrics, *settings)
    seen = [record["round"] for record in run.metrics if "test/loss" in record]
    assert seen == sorted({*rounds}) if rounds else seen == [0, run.info["final"]["round"]]
    assert all("test/accuracy" in record for record in run.metrics) and "test/loss" in run.info["final"]


def test_a_metric_has_its_own_interval_in_seconds(folder: Path) -> None:
    metric = "evaluate.metrics=[accuracy, {name: loss, every: 2.5 s}]"
    run = simulate(folder, "stop.rounds=null", "stop.seconds=10 s", "evaluate.every=0.7 s", metric)
    assert [record["time/seconds"] for record in run.metrics if "test/loss" in record] == [0, 2.8, 5.6, 7.7, 10]


def test_a_loss_may_stop_a_run_at_its_own_interval(folder: Path) -> None:
    metric = "evaluate.metrics=[accuracy, {name: loss, every: 5 rounds}]"
    run = simulate(folder, "evaluate.every=1 rounds", metric, "stop.rounds=100", "stop.loss=2", "evaluate.smooth=2")
    losses = [record["test/loss"] for record in run.metrics if "test/loss" in record]
    assert run.info["reason"] == "loss 2" and run.info["final"]["round"] == 5 * (len(losses) - 1)
    assert sum(losses[-2:]) / 2 <= 2 < sum(losses[-3:-1]) / 2


# What changes a result


def same(first: RunFolder, second: RunFolder) -> bool:
    columns = zip(first.columns.values(), second.columns.values(), strict=True)
    return first.info["model"] == second.info["model"] and all(a.tobytes() == b.tobytes() for a, b in columns)


@pytest.mark.parametrize("settings", [(), ("strategy=fedbuff", "schedule={name: buffered, size: 2}", "world.faults.crash=20%")])
def test_the_same_scenario_gives_the_same_run(folder: Path, settings: tuple[str, ...]) -> None:
    first, second, other = (simulate(folder, *settings, f"seed={seed}", into=f"{run}") for run, seed in enumerate((0, 0, 1)))
    assert same(first, second)
    assert first.info["model"] != other.info["model"] and first.info["data"] != other.info["data"]
    assert [{k: v for k, v in record.items() if k != "time/wall_seconds"} for record in first.metrics] == [
        {k: v for k, v in record.items() if k != "time/wall_seconds"} for record in second.metrics
    ]


def test_task_seed_holds_the_split(folder: Path) -> None:
    first, other = (simulate(folder, "task.seed=3", f"seed={seed}", into=f"{seed}") for seed in (0, 1))
    assert first.info["data"] == other.info["data"] and first.info["model"] != other.info["model"]


def test_the_engine_and_the_stop_do_not_change_the_question(folder: Path) -> None:
    looped, longer = simulate(folder, "engine.plan=looped", into="a"), simulate(folder, "stop.rounds=6", into="b")
    stacked = simulate(folder, "engine.plan=stacked", into="c")
    assert len({run.info["hash"] for run in (looped, longer, stacked)}) == 1
    assert {run.info["plan"] for run in (looped, stacked)} == {"looped", "stacked"}
    assert np.allclose(looped.column("test/loss"), stacked.column("test/loss"), rtol=1e-5)
    sent = [run.columns["node"][run.columns["kind"] == 0] for run in (stacked, longer)]
    assert np.array_equal(sent[0], sent[1][: len(sent[0])])


def test_methods_at_one_seed_see_the_same_luck(folder: Path) -> None:
    world = ("world.faults.crash=20%", "world.availability={name: bernoulli, chance: 80%}")
    runs = [simulate(folder, f"strategy={name}", *world, into=name) for name in ("fedavg", "fedprox", "fedbuff")]
    for run in runs[1:]:
        for column in set(COLUMNS) - {"kind"}:
            assert np.array_equal(run.columns[column], runs[0].columns[column]), column
    assert runs[0].info["model"] != runs[1].info["model"]


def test_a_method_without_its_term_is_the_other(folder: Path) -> None:
    settings = ("strategy={name: fedprox, pull: 0}",)
    assert same(simulate(folder, *settings, into="a"), simulate(folder, into="b"))


# Every kind of schedule, world and codec runs to the end


@pytest.mark.parametrize(
    "settings",
    [
        ("strategy=dsgd", "schedule=gossip", "evaluate.metrics=[loss, nodes, consensus, average]"),
        ("strategy={name: dsgd, order: combine_then_adapt}", "schedule={name: gossip, topology: complete}"),
        ("strategy=dsgd", "schedule=pairwise", "crosslink=float16"),
        ("schedule={name: rounds, cohort: 6, wait_for: 3, late: keep}",),
        ("schedule={name: rounds, cohort: 6, wait_for: 3}",),
        ("schedule={name: rounds, cohort: all, deadline: 2 s}",),
        ("schedule={name: rounds, cohort: all, deadline: 2 s, late: keep}",),
        ("schedule={name: rounds, cohort: 3, sampling: weighted}", "strategy=fedstale"),
        ("schedule={cohort: null, sampling: {name: bernoulli, chance: 40 %}}", "strategy=fedvarp"),
        ("world.faults={crash: 30 %, lost: 30 %}", "world.availability={name: bernoulli, chance: 50 %}"),
        ("strategy=fedasync", "schedule={name: buffered, size: 1, concurrency: 3}", "world.faults={crash: 30 %, lost: 30 %}"),
        ("strategy=fedbuff", "schedule={name: buffered, size: 3, restart: merge}", "uplink=float16", "downlink=float16"),
        ("strategy=fedfix", "schedule={name: ticks, every: 1 s}", "uplink=float16"),
    ],
)
def test_runs_to_the_end(folder: Path, settings: tuple[str, ...]) -> None:
    run = simulate(folder, *settings)
    assert run.info["reason"] == "4 rounds" and run.info["final"]["work/updates"] > 0
    assert np.isfinite(run.column("test/loss")).all()


def test_what_comes_too_late(folder: Path) -> None:
    schedule = "schedule={name: rounds, cohort: 6, wait_for: 3, late: LATE}"
    drop, keep = (simulate(folder, schedule.replace("LATE", late), into=late) for late in ("drop", "keep"))
    assert drop.info["final"]["work/dropped"] == 12 and drop.info["final"]["staleness/mean"] == 0  # 3 of 6, four times
    assert keep.info["final"]["work/dropped"] == 0 and keep.info["final"]["staleness/mean"] > 0


def test_float16_halves_what_is_sent(folder: Path) -> None:
    plain, half = (simulate(folder, f"uplink={codec}", into=codec) for codec in ("none", "float16"))
    saved = plain.info["final"]["traffic/bytes_up"] - half.info["final"]["traffic/bytes_up"]
    assert saved == 16 * (650 * 2 + saved // 16 - 1300)  # 16 messages of 650 numbers; only the header may differ beside
    assert abs(saved // 16 - 1300) <= 8
    assert plain.info["final"]["traffic/bytes_down"] == half.info["final"]["traffic/bytes_down"]
