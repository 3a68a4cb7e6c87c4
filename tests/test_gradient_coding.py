"""Gradient coding as a method: decoded gradients are those of uncoded descent, on the clock that the code allows."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from tools import classification, durations, events, federation, quadratics, quick, same

from fedsim.base.errors import ScenarioError, SettingError
from fedsim.coding.batches import numbers, table
from fedsim.coding.replay import replay
from fedsim.coding.scheme import Fractional, Gc, MSgc, SrSgc, Uncoded
from fedsim.commands import coding_probe as probe
from fedsim.method.train import Train
from fedsim.models.pure import pure
from fedsim.scenario import load
from fedsim.schedule import Rounds
from fedsim.settings.values import Constant, PerNode
from fedsim.world import Compute, Faults, GilbertElliottBursts, World
from strategies.fedavg import FedAvg
from strategies.gradient_coding import GradientCoding

SCHEMES = [Uncoded(), Gc(2), Fractional(2), SrSgc(1, 2, 3), SrSgc(2, 3, 4), MSgc(1, 2, 2), MSgc(2, 3, 4), MSgc(1, 2, 6)]


def bursts(per_sample=0.0, job=1, jitter=None):
    some = GilbertElliottBursts(enter=same(0.2), leave=same(0.7), slower=same(4))
    return World(compute=Compute(job=same(job), sample=same(per_sample), bursts=some, jitter=jitter))


def coded(scheme, **settings):
    return GradientCoding(**{"scheme": scheme, "models": 5, "batch": "all", "lr": Constant(0.3)} | settings)


def by_hand(task, job_of_model_0, lr):
    """Full-batch gradient descent on the mean loss, by autograd."""
    x = task.init.clone().double().requires_grad_()
    for _ in range(job_of_model_0):
        views = {name: view.double() for name, view in task.layout.views(x).items()}
        outputs = task.inputs.double() @ views["weight"].T + views["bias"]
        loss = torch.nn.functional.cross_entropy(outputs, task.targets)
        x = (x - lr * torch.autograd.grad(loss, x)[0]).detach().requires_grad_()
    return x.detach()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_decoded_steps_are_those_of_uncoded_descent(scheme):
    task = classification([5, 3, 8, 2, 7, 5])
    fed = quick(task, coded(scheme), 14, bursts())
    assert int(fed.state["jobs"]) >= 14 - scheme.delay
    for model in (0, 4):  # jobs 0, 5, 10 and 4, 9
        np.testing.assert_allclose(fed.state["models"][0, model], by_hand(task, 3 if model == 0 else 2, 0.3), atol=1e-6)
    kinds = events(fed, "arrival")
    assert len(kinds["time"]) < 14 * 6 or isinstance(scheme, Uncoded)


def test_stacked_gradients_in_float64_are_the_looped_ones():
    task = classification([5, 3, 8, 2, 7, 5])
    one, other = (quick(task, coded(MSgc(1, 2, 2)), 3), federation(task, coded(MSgc(1, 2, 2)), 3, plan="stacked"))
    other.run()
    np.testing.assert_allclose(one.state["models"], other.state["models"], atol=1e-7)
    assert one.state["results"].dtype == torch.float64


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_clock_shows_what_a_replay_of_the_same_times_gives(scheme):
    task = classification([5] * 6)
    fed = quick(task, coded(scheme), 12, bursts())
    nodes = np.arange(6)
    times = [fed.nature.work(nodes, nodes, nodes, np.full(6, turn)) / fed.nature.per_second for turn in range(1, 13)]
    seconds, waits = replay(scheme, np.array(times), 0.0, 1.0)
    assert fed.now / fed.nature.per_second == pytest.approx(seconds)
    assert fed.strategy.measure(fed.state, task)["wait_outs"] == waits


def test_time_follows_the_load_of_the_round():
    task, world = classification([4] * 6), World(compute=Compute(sample=same(1)))
    assert quick(task, coded(Uncoded()), 3, world).now == 3 * 4 * 10**9
    assert quick(task, coded(Gc(2)), 3, world).now == 3 * 12 * 10**9
    # M-SGC with B = 1, W = 2, lambda = 1: A1 = 2 / (6 (1 + 2)) = 1/9 of 24 samples is 2.67; the first round has the first slot only
    found = table(MSgc(1, 2, 1), 6, 24).samples
    assert found.sum(0)[0] == 16 and found.sum(0)[1] == 2 * 8  # every coded chunk is held twice
    first, later = found[:, 0].max(), found.sum(1).max()
    assert quick(task, coded(MSgc(1, 2, 1), patience=9.0), 3, world).now == (first + 2 * later) * 10**9


def test_a_pattern_outside_the_design_waits_for_all():
    task, world = classification([4] * 4), durations(1, 5, 1, 7)
    fed = quick(task, coded(Gc(1)), 2, world)  # two are slow, one may be
    assert fed.now == 14 * 10**9 and int(fed.state["waits"]) == 2
    fed = quick(task, coded(Gc(2)), 2, world)
    assert fed.now == 4 * 10**9 and int(fed.state["waits"]) == 0
    fed = quick(task, coded(Gc(2, strict=True)), 2, world)
    assert int(fed.state["waits"]) == 2


def test_a_batch_has_one_sample_of_each_block_of_the_data_and_all_workers_agree():
    task = classification([5, 3, 8])
    places = torch.arange(4)
    batch = numbers(task, 4, torch.tensor(7), places)
    assert (batch // 4 == places).all()
    assert (numbers(task, 4, torch.tensor(7), places[2:]) == batch[2:]).all()
    assert any((numbers(task, 4, torch.tensor(job), places) != batch).any() for job in range(3))
    assert (numbers(task, 16, torch.tensor(0), torch.arange(16)) == torch.arange(16)).all()


def test_bits_do_not_depend_on_how_jobs_are_grouped():
    task = classification([5, 3, 8, 2, 7, 5])
    one, other = (quick(task, coded(SrSgc(1, 2, 3), batch=11), 6, bursts(), chunk=chunk) for chunk in (2, 100))
    assert all(torch.equal(rows, other.state[name]) for name, rows in one.state.items())


def test_minibatches_are_decoded_as_exactly():
    task = classification([5, 3, 8, 2, 7, 5])
    plain, code = (quick(task, coded(scheme, batch=11), 12, bursts()) for scheme in (Uncoded(), MSgc(2, 3, 3)))
    np.testing.assert_allclose(plain.state["models"][0, 2], code.state["models"][0, 2], atol=1e-6)  # jobs 2 and 7
    assert (plain.state["models"] != task.init).all()


def test_regression_in_float64_decodes_to_rounding():
    task = quadratics([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0], [2.0, 2.0], [1.0, 1.0], [0.0, 4.0]])
    fed = quick(task, coded(Gc(2), models=1), 5, bursts())
    mean = task.inputs[:, 1:].mean(0)
    np.testing.assert_allclose(fed.state["models"][0, 0], mean * (1 - 0.7**5), atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientCoding(scheme=MSgc(2, 3, 2), models=3), "3 rounds late, so `models` must be 4 or more"),
        (lambda: GradientCoding(train=Train(steps=2)), "does not train"),
        (lambda: GradientCoding(schedule=Rounds()), "rounds follow the code; the schedule `rounds` does not"),
    ],
)
def test_settings_without_meaning_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_does_not_fit_the_task_or_the_world_is_refused_before_the_run():
    task = classification([4] * 4)
    with pytest.raises(SettingError, match="groups of 3 don't divide 4 workers") as found:
        federation(task, coded(Fractional(2)))
    assert found.value.key == "strategy.scheme"
    with pytest.raises(SettingError, match="some may never come"):
        federation(task, coded(Gc(1)), world=World(faults=Faults(crash=PerNode(Fraction(1, 10)))))
    with pytest.raises(SettingError, match="rounds are those of `gradient_coding`"):
        federation(task, replace(FedAvg(), schedule=GradientCoding().schedule))
    model = pure(torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(6, 3)))
    with pytest.raises(SettingError, match="gradients of one sample differ"):
        federation(classification([4] * 4, model=model), coded(Gc(1)))


SCENARIO = """
task: {data: {name: gaussians, samples: 64}, partition: {name: iid, nodes: 8}, model: logistic}
strategy: {name: gradient_coding, scheme: {name: m_sgc, burst: 1, window: 2, stragglers: 2}, models: 4, batch: 64}
world: {compute: {job: 1 s, sample: 10 ms, bursts: {name: gilbert_elliott, enter: 10 %, leave: 100 %, slower: 5}}}
stop: {rounds: 4}
"""


@pytest.fixture
def scenario(folder):
    path = folder / "coded.yaml"
    path.write_text(SCENARIO)
    return path


def test_a_probe_names_the_fastest_of_each_kind_in_the_scenarios_world(scenario, capsys):
    assert probe.main([str(scenario)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0].split("}")[0] for line in told] == [
        f"{{name: {kind}" for kind in ("none", "gc", "fractional", "sr_sgc", "m_sgc")
    ]
    [loaded] = load(scenario)
    times, per_load = probe.tables(loaded.scenario, 8, 64, 3)
    assert set(np.unique(times)) == {1.0, 5.0}
    np.testing.assert_allclose(per_load, 0.64 * times, rtol=1e-12)
    assert probe.main([str(scenario), "strategy=fedavg"]) == 2
    assert "a probe is of `gradient_coding`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["strategy.models=1"], "gradients come up to 1 rounds late, so `models` must be 2 or more"),
        (["strategy.scheme.burst=2"], "strategy.scheme: `burst` is less than `window`"),
        (["train.lr=0.1"], "does not train; it has `lr` and `batch` of its own"),
        (["schedule=rounds"], "strategy: rounds follow the code"),
        (["uplink=float16"], "`uplink` and `privacy` have no place here"),
        (["strategy.scheme.straglers=2"], "did you mean `strategy.scheme.stragglers`"),
    ],
)
def test_a_scenario_that_can_not_be_is_one_clear_error(scenario, settings, message):
    with pytest.raises(ScenarioError, match=message):
        load(scenario, settings)


def test_other_methods_take_the_time_that_training_takes():
    task = classification([4, 8])
    assert FedAvg().effort({}, task) is None
    fed = quick(task, FedAvg(train=Train(epochs=2, batch=4)), 1, World(compute=Compute(sample=same(1), step=same(2))))
    assert fed.now == (16 + 2 * 4) * 10**9
