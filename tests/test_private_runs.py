"""Privacy in a scenario: the metric, the stop before a budget, noise from a planned end, resuming, and what is refused before the start."""

import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from launch import TASKS, call, refused, resumed, same, simulate, write

from fedsim.federation.ledger import KINDS
from fedsim.privacy.dpsgd import costliest
from fedsim.privacy.gaussian import Gaussian
from fedsim.privacy.noisy import Adapt
from fedsim.privacy.spent import epsilon, noise_for, releases_for
from fedsim.scenario import load
from fedsim.scenario.catalog import describe

DELTA = 1e-5
TEXT = """\
task: {data: digits, partition: {name: dirichlet, alpha: 1, nodes: 30}, model: logistic}
strategy: {name: fedavg, weights: uniform}
train: {steps: 2, batch: 8, lr: 0.1}
schedule: {name: rounds, sampling: {name: bernoulli, chance: 0.3}}
privacy: {clip: 0.5, %s}
stop: {rounds: 8}
track: none
"""
SAMPLES = TEXT % "unit: sample, noise: 1"
NOISY, PLANNED = TEXT % "noise: 2", TEXT % "epsilon: 5"


def test_every_evaluation_says_what_is_spent(folder: Path) -> None:
    run = simulate(folder, "evaluate.every=2 rounds", text=NOISY)
    spent = [record["privacy/epsilon"] for record in run.metrics]
    assert [record["round"] for record in run.metrics] == [0, 2, 4, 6, 8]
    assert spent == [epsilon(2.0, DELTA, version, 0.3) for version in (0, 2, 4, 6, 8)] and spent[0] == 0


def test_a_run_ends_before_its_budget_is_exceeded(folder: Path) -> None:
    run = simulate(folder, "stop={rounds: null, epsilon: 4}", text=NOISY)
    rounds = run.info["final"]["round"]
    assert run.info["reason"] == "epsilon 4" and rounds == releases_for(4, 2.0, DELTA, 0.3) > 3
    assert run.info["final"]["privacy/epsilon"] <= 4 < epsilon(2.0, DELTA, rounds + 1, 0.3)


def test_a_sampled_cohort_ends_where_its_most_frequent_client_could_spend_too_much(folder: Path) -> None:
    run = simulate(
        folder,
        "stop={rounds: null, epsilon: 4}",
        "schedule={name: rounds, cohort: 10}",
        text=NOISY.replace(", sampling: {name: bernoulli, chance: 0.3}", ""),
    )
    merged = run.columns["node"][run.columns["kind"] == KINDS.index("merge")]
    assert max(map(merged.tolist().count, set(merged.tolist()))) == releases_for(4, 2.0, DELTA)
    assert run.info["reason"] == "epsilon 4" and run.info["final"]["privacy/epsilon"] <= 4


def test_noise_follows_from_the_planned_end(folder: Path) -> None:
    run = simulate(folder, text=PLANNED)
    assert run.info["noise"] == noise_for(5, DELTA, 8, 0.3)
    assert 4.9 < run.info["final"]["privacy/epsilon"] <= 5
    plain = simulate(folder, text=TEXT % f"noise: {run.info['noise']!r}", into="plain")
    assert plain.info["model"] == run.info["model"]


def test_every_evaluation_says_what_the_worst_client_has_spent_of_its_samples(folder: Path) -> None:
    run = simulate(folder, "evaluate.every=2 rounds", text=SAMPLES)
    began = run.columns["kind"] == KINDS.index("dispatch")
    node, version = (run.columns[name][began] for name in ("node", "version"))
    steps = [2 * np.bincount(node[version < round], minlength=30) for round in (0, 2, 4, 6, 8)]
    chance = np.minimum(1, 8 / TASKS.get(load(write(folder, SAMPLES))[0]).counts.numpy())
    assert [record["privacy/epsilon"] for record in run.metrics] == [costliest(1.0, DELTA, spent, chance)[0] for spent in steps]


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["schedule={name: buffered, size: 5, concurrency: 12}", "world.compute.job={name: linear, from: 4 s, to: 0.5 s}"],
        ["strategy=dsgd", "schedule=gossip"],
    ],
)
def test_no_client_spends_more_on_its_samples_than_its_budget(folder: Path, settings: list[str]) -> None:
    run = simulate(folder, "stop={rounds: null, epsilon: 6}", "privacy.noise=1.5", *settings, text=SAMPLES)
    longer = simulate(folder, f"stop.rounds={run.info['final']['round'] + 60}", "privacy.noise=1.5", *settings, text=SAMPLES, into="longer")
    assert run.info["reason"] == "epsilon 6" and 3.5 < run.info["final"]["privacy/epsilon"] <= 6 < longer.info["final"]["privacy/epsilon"]


def test_without_noise_no_epsilon_is_said(folder: Path) -> None:
    run = simulate(folder, "privacy.noise=0", text=NOISY)
    assert all("privacy/epsilon" not in record for record in run.metrics)
    json.loads((run.path / "metrics.jsonl").read_text().splitlines()[0], parse_constant=pytest.fail)


def test_a_resumed_run_has_the_same_bits_and_has_spent_the_same(folder: Path) -> None:
    whole = simulate(folder, text=NOISY)
    half = simulate(folder, "stop.rounds=5", "checkpoint=2 rounds", "evaluate.every=1 rounds", text=NOISY, into="half")
    same(whole, resumed(half.path, "stop.rounds=8"))


def test_so_has_one_whose_clip_follows_its_messages(folder: Path) -> None:
    text = NOISY.replace("clip: 0.5,", "clip: 0.5, adapt: {quantile: 0.4, noise: 3},")
    whole = simulate(folder, text=text, into="whole")
    half = simulate(folder, "stop.rounds=5", "checkpoint=2 rounds", "evaluate.every=1 rounds", text=text, into="half")
    same(whole, resumed(half.path, "stop.rounds=8"))
    clips = whole.column("privacy/clip")
    assert clips[0] == 0.5 and len({*clips}) == len(clips)


def test_a_plain_adapt_is_its_quantile(folder: Path) -> None:
    def adapt(written: str, *settings: str) -> Adapt | None:
        [loaded] = load(write(folder, NOISY.replace("clip: 0.5,", f"clip: 0.5, adapt: {written},")), settings)
        return cast(Gaussian, loaded.scenario.strategy.privacy).adapt

    assert adapt("0.4") == adapt("{quantile: 40 %}") == adapt("none", "privacy.adapt=0.4") == Adapt(0.4)
    assert adapt("0.4", "privacy.adapt.rate=1") == Adapt(0.4, rate=1) and adapt("0.4", "privacy.adapt=none") is None is adapt("none")
    assert {"adapt", "adapt.rate"} <= {one.name for part in describe("gaussian") for one in part.settings}


def test_so_has_one_that_hides_samples(folder: Path) -> None:
    text = SAMPLES.replace("name: fedavg, weights: uniform", "name: sketched, sketch: {name: srht, fraction: 50 %}")
    whole = simulate(folder, text=text)
    half = simulate(folder, "stop.rounds=5", "checkpoint=2 rounds", "evaluate.every=1 rounds", text=text, into="half")
    same(whole, resumed(half.path, "stop.rounds=8"))


def test_a_run_goes_on_beyond_its_budget_if_told(folder: Path) -> None:
    run = simulate(folder, "stop={rounds: null, epsilon: 4}", "checkpoint=1 rounds", text=NOISY)
    longer = resumed(run.path, "stop.epsilon=6")
    assert longer.info["reason"] == "epsilon 6" and longer.info["final"]["round"] > run.info["final"]["round"]


def test_where_noise_follows_from_the_planned_end_that_can_not_change(folder: Path) -> None:
    run = simulate(folder, "checkpoint=1 rounds", text=PLANNED)
    result = call("resume", run.path, "stop.rounds=12")
    assert result.exit_code == 2 and "the noise that `privacy` needs for the planned end was" in result.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (NOISY, ["stop.epsilon=0.1"], "stop.epsilon: the first merge could cost 1."),
        (NOISY, ["privacy.noise=0", "stop.epsilon=5"], "stop.epsilon: the first merge could cost inf"),
        (NOISY, ["privacy=none", "stop.epsilon=5"], "stop.epsilon: never reached: `privacy` is not set"),
        (NOISY, ["stop.epsilon=0"], "stop.epsilon: `0`: above 0"),
        (NOISY, ["privacy.noise=-1"], "privacy.noise: `-1`: at least 0"),
        (NOISY, ["privacy.clip=0"], "privacy.clip: `0`: above 0"),
        (NOISY, ["privacy.delta=1"], "privacy.delta: `1`: above 0 and below 1"),
        (NOISY, ["privacy.delta=0.05"], "privacy.delta: 0.05 for 30 clients"),
        (NOISY, ["privacy.epsilon=1"], "`noise` and `epsilon` exclude each other"),
        (NOISY, ["privacy.unit=device"], "privacy.unit"),
        (SAMPLES, ["stop.epsilon=0.1"], "stop.epsilon: the first round could cost 4."),
        (SAMPLES, ["strategy=fedld"], "(`fedld`) has a loss of whole batches"),
        (SAMPLES, ["strategy=adversarial"], "looks at gradients with respect to their inputs"),
        (SAMPLES, ["privacy.clip=inf"], "`clip` must be finite"),
        (SAMPLES, ["privacy.noise=null", "privacy.epsilon=5"], "privacy.epsilon: how often a node works is known beforehand"),
        (NOISY, ["privacy=laplace"], "unknown privacy `laplace`"),
        (NOISY, ["strategy.weights=samples"], "set `strategy.weights: uniform`"),
        (NOISY, ["strategy=fedstale"], "`privacy` lets out noisy means only"),
        (NOISY, ["strategy=dsgd", "schedule=gossip"], "privacy: noise is added at a server"),
        (PLANNED, ["stop={rounds: null, updates: 100}"], "privacy.epsilon: needs `stop.rounds`"),
        (PLANNED, ["privacy.epsilon=1e-9", "privacy.delta=1e-12"], "privacy.epsilon: no noise is enough for epsilon 1e-09"),
        (PLANNED, ["schedule.sampling=uniform"], "how often a client takes part is known beforehand"),
    ],
)
def test_refused_before_the_start(folder: Path, text: str, settings: list[str], message: str) -> None:
    said = refused("run", write(folder, text), *settings).replace("\n", " ")
    assert message in said and "1 error." in said


def test_what_is_written_down_is_the_same_scenario(folder: Path) -> None:
    [loaded] = load(write(folder, PLANNED))
    file = folder / "again.yaml"
    file.write_text(loaded.resolved)
    [again] = load(file)
    assert again.scenario == loaded.scenario and again.hash == loaded.hash
    assert "  epsilon: 5" in loaded.resolved


def test_the_closing_table_says_what_was_spent_where_something_was(folder: Path) -> None:
    file = write(folder, NOISY)
    spent = f"{epsilon(2.0, DELTA, 8, 0.3):.3g}"
    table = call("run", file).stdout.splitlines()
    [head] = [line for line in table if "ended by" in line]
    row = table[table.index(head) + 1]
    assert head.split()[-3:] == ["epsilon", "ended", "by"] and row.split()[-3:] == [spent, "8", "rounds"]
    assert "epsilon" not in call("run", file, "privacy=none").stdout
