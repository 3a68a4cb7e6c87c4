"""FedStale's probabilities of being asked: as scenarios say them, estimated, missing, or 0."""

import pytest
import torch
from launch import TASKS, refused, write
from tools import federation, inbox, quadratics, steps
from tools import quick as run

from fedsim.base.errors import SettingError
from fedsim.run.building import build
from fedsim.scenario import load
from fedsim.schedule import Rounds
from fedsim.schedule.sampling import BernoulliSampling
from fedsim.settings.values import Count, PerNode
from strategies.fedstale import FedStale


def coins(*chances):
    return Rounds(sampling=BernoulliSampling(PerNode(chances)))


def test_estimates_are_running_means_of_past_gaps():
    """1 until a gap has ended; gaps count from round 1, and a round sees only earlier ones."""
    strategy, task = FedStale(chances="estimated", beta=0), quadratics([0.0, 0, 0])
    state, seen = strategy.start(torch.zeros(1, 1).double(), task), []
    for cohort in ([0], [0, 1], [], [0, 1], [0, 2], [0, 1, 2]):
        if cohort:
            news = inbox([0.25] * len(cohort), cohort, update=[1.0] * len(cohort))
            trial = {name: value.clone() for name, value in state.items()}
            seen.append([1 / gap for gap in strategy.estimate(trial, news).tolist()])
            state = strategy.merge(state, news)
        else:
            state = strategy.merge_nothing(state)
    # node 0 came in rounds 1, 2, 4, 5, 6; node 1 in 2, 4, 6; node 2 in 5, 6
    assert seen == [pytest.approx(row) for row in ([1], [1, 1], [1, 2], [4 / 3, 1], [5 / 4, 2, 5])]
    assert state["model"].item() == pytest.approx(0.25 * (1 + 2 + 3 + 4 / 3 + 1 + 5 / 4 + 2 + 5))


def test_an_estimate_settles_at_the_chance():
    schedule, task = coins(1.0, 0.5, 0.25), quadratics([0.0, 0, 0])
    fed = run(task, FedStale(train=steps(), schedule=schedule, chances="estimated"), 700)
    often = (fed.state["times"] / fed.state["gaps"])[0].tolist()
    assert often[0] == 1
    assert often[1:] == pytest.approx([0.5, 0.25], abs=0.04)


CHANCE_OF_FOUR = {  # as a scenario says it, and what it means for the updates of four clients
    "50 %": [0.5, 0.5, 0.5, 0.5],
    "[1, 0.75, 0.5, 25 %]": [1, 0.75, 0.5, 0.25],
    "{often: 1, rare: 0.25}": [1, 1, 0.25, 0.25],
    "{often: [1, 0.75], rare: 0.5}": [1, 0.75, 0.5, 0.5],
    "{name: linear, from: 1, to: 0.25}": [1, 0.75, 0.5, 0.25],
    "{often: 1, rare: {name: linear, from: 0.5, to: 0.25}}": [1, 1, 0.5, 0.25],
}


def asked(folder, chance, monkeypatch, rounds=12):
    """What FedStale is told: the chances of each client that came, in a run of a scenario with four clients."""
    text = (
        "task: {data: digits, partition: {name: iid, nodes: 4}, model: logistic}\ngroups: {often: 50 %, rare: rest}\nstrategy: fedstale\n"
    )
    text += f"schedule: {{name: rounds, sampling: {{name: bernoulli, chance: {chance}}}}}\nstop: {{rounds: {rounds}}}\n"
    (folder / "four.yaml").write_text(text + "engine: {plan: looped}\n")
    [loaded] = load(folder / "four.yaml")
    fed, seen, usual = build(loaded, TASKS).fed, {}, FedStale.merge

    def merge(strategy, state, inbox):
        for node, known in zip(inbox.sender.tolist(), inbox.chance.tolist(), strict=True):
            seen.setdefault(node, set()).add(known)
        return usual(strategy, state, inbox)

    monkeypatch.setattr(FedStale, "merge", merge)
    fed.run()
    return seen


@pytest.mark.parametrize("chance", CHANCE_OF_FOUR)
def test_chances_that_differ_over_clients_reach_the_method(folder, monkeypatch, chance):
    seen = asked(folder, chance, monkeypatch)
    assert seen == {node: {CHANCE_OF_FOUR[chance][node]} for node in seen}
    assert set(range(4)) == set(seen)


def test_drawn_chances_reach_the_method(folder, monkeypatch):
    """Each client its own, the same in all rounds, between the two ends."""
    seen = asked(folder, "{name: uniform, from: 0.4, to: 0.9}", monkeypatch)
    assert set(range(4)) == set(seen) and all(len(chances) == 1 for chances in seen.values())
    drawn = [chances.pop() for chances in seen.values()]
    assert len(set(drawn)) == 4 and all(0.4 <= one < 0.9 for one in drawn)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["schedule={name: rounds, cohort: 4, wait_for: 3}"], "set `chances: estimated`"),
        (["world.faults={crash: 10 %}"], "set `chances: estimated`"),
        (["schedule={name: ticks, every: 1 s}"], "set `chances: estimated`"),
        (["strategy.beta=1.5"], "strategy.beta: `1.5`: at least 0 and at most 1 is due"),
        (["strategy.beta=-0.1"], "strategy.beta: `-0.1`: at least 0 and at most 1 is due"),
        (["strategy.server_lr=0"], "strategy.server_lr: `0`: above 0 is due"),
        (["schedule=gossip"], "`fedstale` merges at a server"),
        (["strategy=mifa", "schedule=gossip"], "`mifa` merges at a server"),
        (["strategy=mifa", "schedule={name: buffered, size: 2}"], "strategy: a client could stand in a merge twice"),
        (["schedule.sampling={name: bernoulli, chance: [1, 0.5]}", "schedule.cohort=null"], "a list of 2 for 8 nodes"),
    ],
)
def test_what_has_no_meaning_is_refused(folder, settings, said):
    first = [] if any(text.startswith("strategy=") for text in settings) else ["strategy=fedstale"]
    message = refused("run", write(folder).name, *first, *settings)
    assert said in message and "1 error." in message


def test_estimates_need_no_known_chance():
    slow = Rounds(cohort=Count(2), wait_for=1)
    with pytest.raises(SettingError, match=r"no known probability here.*; or set `chances: estimated`"):
        federation(quadratics([1.0, 2, 3]), FedStale(train=steps(), schedule=slow), 1)
    assert run(quadratics([1.0, 2, 3]), FedStale(train=steps(), schedule=slow, chances="estimated"), 5).version == 5


def test_who_never_takes_part_is_lost_from_the_objective():
    task, strategy = quadratics([1.0, 3.0, 100.0]), FedStale(train=steps(), schedule=coins(1.0, 0.5, 0.0), beta=1.0)
    fed = run(task, strategy, 300)
    assert fed.state["last"][torch.tensor([2])].item() == 0
    assert fed.state["model"].item() == pytest.approx(2)
    with pytest.raises(ValueError, match="chance of being asked is 0"):
        strategy.merge(strategy.start(torch.zeros(1, 1).double(), task), inbox([0.5], chance=[0.0], update=[1.0]))
