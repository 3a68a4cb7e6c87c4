"""Which value wins: defaults, the strategy's paper, parent files, the file, the command line."""

from fractions import Fraction
from pathlib import Path

import pytest

from fedsim.base.errors import ScenarioError
from fedsim.codecs import Float16, Identity
from fedsim.scenario import Loaded, load
from fedsim.schedule import Buffered, Rounds
from fedsim.settings.values import Count, Exponential, Linear, LogNormal, PerNode

PLAIN = "task: {data: digits}\nstrategy: fedavg\n"


def run_of(folder: Path, text: str, *overrides: str) -> Loaded:
    (folder / "test.yaml").write_text(text)
    (loaded,) = load(folder / "test.yaml", overrides)
    return loaded


def problems_of(folder: Path, text: str, *overrides: str) -> list[str]:
    """`line:column message` of every problem, `!column` on the command line."""
    with pytest.raises(ScenarioError) as error:
        run_of(folder, text, *overrides)
    return [f"{p.line}:{p.column} {p.message}" if p.line else f"!{p.column} {p.message}" for p in error.value.problems]


def test_defaults_come_from_the_strategy_and_then_from_the_file(tmp_path: Path) -> None:
    assert run_of(tmp_path, PLAIN).scenario.strategy.schedule == Rounds()
    buffered = run_of(tmp_path, PLAIN.replace("fedavg", "fedbuff") + "schedule: {size: 3}\nuplink: float16\n").scenario.strategy
    assert buffered.schedule == Buffered(size=3)
    assert (buffered.uplink, buffered.downlink) == (Float16(), Identity())


def test_values_over_nodes_and_rounds(tmp_path: Path) -> None:
    text = (
        PLAIN + "groups: {often: 50 %, rare: rest}\n"
        "train: {lr: {name: exponential, start: 0.1, factor: 0.998}}\n"
        "world:\n"
        "  compute: {job: {name: linear, from: 1 s, to: 0.2 s}, step: {often: 10 ms, rare: 1 s}}\n"
        "  network: {up: {name: log_normal, median: 1 MB/s, sigma: 0.5}, latency: [1 s,2 s,3 s,4 s,5 s,6 s,7 s,8 s,9 s,10 s]}\n"
    )
    scenario = run_of(tmp_path, text).scenario
    world = scenario.world
    assert scenario.groups == {"often": Count(share=0.5), "rare": "rest"}
    assert scenario.strategy.train.lr == Exponential(0.1, 0.998)
    assert world.compute.job == PerNode(Linear(Fraction(1), Fraction(1, 5)))
    assert world.compute.step == PerNode({"often": PerNode(Fraction(1, 100)), "rare": PerNode(Fraction(1))})
    assert world.network.up == PerNode(LogNormal(Fraction(10**6), 0.5))
    assert world.network.latency == PerNode(tuple(Fraction(second) for second in range(1, 11)))


def test_extends_merges_key_by_key_and_a_part_with_another_name_replaces_the_old_whole(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "task: {data: digits, partition: {name: dirichlet, alpha: 0.3, nodes: 20}}\n"
        "strategy: {name: fedstale, beta: 0.3}\ntrain: {epochs: 5, batch: 16}\nstop: {rounds: 9}\n"
    )
    same = run_of(tmp_path, "extends: base.yaml\ntask: {partition: {alpha: 1.5}}\ntrain: {batch: null}\nstop: {seconds: 1 h}\n").scenario
    assert (same.task.partition.alpha, same.task.partition.nodes) == (1.5, 20)  # type: ignore[attr-defined]
    assert (same.train.epochs, same.train.batch) == (5, 32)
    assert (same.stop.rounds, same.stop.seconds) == (9, 3600)
    assert same.strategy.beta == 0.3  # type: ignore[attr-defined]
    other = run_of(tmp_path, "extends: [base.yaml]\nstrategy: fedprox\ntask: {partition: {name: iid}}\n").scenario
    assert (other.strategy.name, other.task.partition.nodes) == ("fedprox", 10)


def test_extends_in_a_circle_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("extends: test.yaml\n")
    assert problems_of(tmp_path, PLAIN + "extends: other.yaml\n") == [
        "1:10 `extends` goes round in a circle: test.yaml -> other.yaml -> test.yaml"
    ]


def test_stop_is_a_hundred_rounds_only_where_nothing_is_written(tmp_path: Path) -> None:
    assert run_of(tmp_path, PLAIN).scenario.stop.rounds == 100
    assert run_of(tmp_path, PLAIN + "stop: {seconds: 60}\n").scenario.stop.rounds is None


def test_overrides_go_left_to_right_with_the_types_of_the_file(tmp_path: Path) -> None:
    overrides = [
        "strategy=fedprox", "strategy.pull=0.5", "world.network.up=2MB/s", "evaluate.metrics=[loss]", "evaluate.metrics+=consensus",
        "evaluate.metrics.0=accuracy", "stop.rounds=null", "stop.seconds=1_200", "about=one, two: three", "groups={a: 2, b: rest}",
        "world.compute.job={a: 1 s, b: 2 s}", "world.compute.job.b=3 s", "track=none",
    ]  # fmt: skip
    scenario = run_of(tmp_path, PLAIN + "stop: {rounds: 9}\n", *overrides).scenario
    assert (scenario.strategy.name, scenario.strategy.pull) == ("fedprox", 0.5)  # type: ignore[attr-defined]
    assert scenario.world.network.up == PerNode(Fraction(2_000_000))
    assert [metric.name for metric in scenario.evaluate.metrics] == ["accuracy", "consensus"]
    assert (scenario.stop.rounds, scenario.stop.seconds, scenario.about) == (None, 1200, "one, two: three")
    assert scenario.world.compute.job == PerNode({"a": PerNode(Fraction(1)), "b": PerNode(Fraction(3))})
    assert scenario.track.uri == "none"


def test_sampling_by_group_and_a_curve_set_by_its_parts(tmp_path: Path) -> None:
    text = (
        "task: {data: digits, partition: {name: iid, nodes: 24}}\ngroups: {often: 50 %, rare: rest}\n"
        "strategy: {name: fedstale, beta: 0.5}\ntrain: {lr: {name: exponential, start: 0.1, factor: 0.998}}\n"
        "schedule: {name: rounds, sampling: {name: bernoulli, chance: {often: 1.0, rare: 0.1}}}\n"
    )
    loaded = run_of(tmp_path, text, "train.lr.factor=0.5", "schedule.sampling.chance.rare=20 %")
    assert loaded.scenario.train.lr == Exponential(0.1, 0.5)
    assert (loaded.flat["schedule.sampling.chance.often"], loaded.flat["schedule.sampling.chance.rare"]) == ("100 %", "20 %")
    assert run_of(tmp_path, loaded.resolved).scenario.strategy == loaded.scenario.strategy


def test_appending_to_a_list_begins_with_its_default(tmp_path: Path) -> None:
    metrics = run_of(tmp_path, PLAIN, "evaluate.metrics+=consensus").scenario.evaluate.metrics
    assert [metric.name for metric in metrics] == ["accuracy", "loss", "clients", "consensus"]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("strategy.bta=1", "!1 unknown key `strategy.bta`; there are name, server_lr, weights, average"),
        ("stpo.rounds=1", "!1 unknown key `stpo`; did you mean `stop`?"),
        ("evaluate.metrics.7=loss", "!1 `evaluate.metrics` is a list of 3; `7` is no item of it, counted from 0"),
        ("seed", "!1 `seed` is no setting; one is `strategy.beta=0.3`"),
        ("seed=", "!1 `seed` has no value; `null` takes the default, `none` is without"),
        ("seed=0..4", "!6 seed: several values are for `fedsim sweep`; one is due"),
        ("extends=a.yaml", "!1 `extends` belongs into a file"),
        ("world.network.up=2 MB", "!18 world.network.up: `2 MB` is a size; a rate is due: `2 MB/s`"),
    ],
)
def test_problems_of_overrides(tmp_path: Path, override: str, problem: str) -> None:
    assert problems_of(tmp_path, PLAIN, override) == [problem]
