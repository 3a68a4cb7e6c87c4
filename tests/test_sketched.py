"""Sketched federated learning: exact reductions, closed forms on quadratics, replicas, bills, and what is refused."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from test_buffers import normed
from tools import classification, events, models, quadratics, quick, steps
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, normal
from fedsim.base.rows import Rows
from fedsim.codecs import Ams, CountSketch, Ef14, Ef21, Float16, GaussianSketch, Qsgd, Sketch, SparseSketch, Srht, TopK, row_bytes
from fedsim.method.inbox import Inbox
from fedsim.privacy.gaussian import Gaussian
from fedsim.schedule import Buffered, Rounds
from fedsim.schedule.sampling import BernoulliSampling
from fedsim.settings.values import Count, PerNode
from fedsim.task.task import Task
from strategies.fedavg import FedAvg
from strategies.sketched import Sketched

ALL = Rounds(cohort=Count())
SKETCHES = [GaussianSketch(count=4), Ams(count=4), Srht(count=4), CountSketch(count=4), SparseSketch(count=4, nonzeros=2)]


@dataclass(frozen=True)
class Kept(Sketched):
    """Its state also has y of the last merge, and how long messages were."""

    name: ClassVar[str] = "kept"

    def start(self, x: Tensor, task: Task) -> Any:
        return super().start(x, task) | {"y": x.new_zeros(1, self.sketch.kept(x.shape[1]), dtype=torch.float32)}

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        return super().merge(state, inbox) | {"y": self.server_lr * self.mean(inbox, "sketch")}

    def model(self, state: Rows) -> Tensor:
        return torch.cat([state["model"], state["y"]], 1)  # so that `models` has both


def bowl(size: int = 16) -> Task:
    """|w|^2 / 2 of one client, from a point that is not 0."""
    task = quadratics(torch.zeros(1, size))
    return replace(task, init=normal(fold(5), size).double())


def sketched(sketch: Sketch, kind: type[Sketched] = Sketched, lr: float = 0.1, count: int = 1, **settings: Any) -> Sketched:
    return kind(train=steps(count, lr), sketch=sketch, **{"schedule": ALL} | settings)


@pytest.mark.parametrize("weights", ["samples", "uniform"])
def test_a_whole_hadamard_sketch_is_fedavg(weights: Any) -> None:
    centres = normal(fold(1, torch.arange(3)), 8).double()
    task = quadratics(centres, [1.0, 2.0, 0.5], samples=[1, 2, 3])
    common = {"train": steps(3), "schedule": ALL, "weights": weights, "server_lr": 0.7}
    expected, found = (models(quick(task, one, 5)) for one in (FedAvg(**common), Sketched(sketch=Srht(count=8), **common)))
    assert torch.allclose(found, expected, rtol=0, atol=1e-6) and expected[-1].abs().max() > 0.1


@pytest.mark.parametrize("sketch", SKETCHES, ids=repr)
def test_the_models_step_is_the_sketch_of_the_mean_update_there_and_back(sketch: Sketch) -> None:
    task = quadratics(normal(fold(1, torch.arange(3)), 16).double(), samples=[1, 2, 3])
    fed = quick(task, sketched(sketch, server_lr=0.5, weights="samples"), 1)
    update = 0.1 * (task.inputs[[0, 1, 3], 1:].T @ task.share)[None]
    key = fold(fed.seed, "shared", torch.zeros(1, dtype=torch.int64))
    there = sketch.restore(sketch.squeeze(update, key), 16, key)
    assert torch.allclose(models(fed)[1], 0.5 * there.double(), atol=1e-6) and there.abs().max() > 0.01


def test_whoever_takes_in_all_that_was_broadcast_has_the_servers_bits() -> None:
    task, sketch = quadratics(normal(fold(1, torch.arange(3)), 16).double()), CountSketch(count=4)
    fed = quick(task, sketched(sketch, Kept), 6)
    both = models(fed)[:, 0]
    w = both[0, :16][None].clone()
    for version in range(6):
        key = fold(fed.seed, "shared", torch.tensor([version]))
        w = w + sketch.restore((both[version + 1, 16:][None].float(),), 16, key).double()
        assert torch.equal(w[0], both[version + 1, :16])


def test_each_round_on_a_bowl_by_the_length_of_its_message() -> None:
    """R R' = d/s, so |w - lr R' R w|^2 = |w|^2 - (2 / lr - d/s) |y|^2 with y = -lr R w; in the mean |R w|^2 = |w|^2, which makes the factor
    1 - 2 lr + lr^2 d/s."""
    both = models(quick(bowl(), sketched(Srht(count=4), Kept), 400))[:, 0]
    w, y = both[:, :16].square().sum(1), both[1:, 16:].square().sum(1)
    assert torch.allclose(w[1:], w[:-1] - (2 / 0.1 - 16 / 4) * y, rtol=1e-5, atol=0)
    assert float((w[1:] / w[:-1]).mean()) == pytest.approx(1 - 2 * 0.1 + 0.1**2 * 16 / 4, abs=0.03)
    assert float((y / w[:-1]).mean()) == pytest.approx(0.1**2, rel=0.1)


@pytest.mark.parametrize(("lr", "grows"), [(0.45, False), (0.55, True)])
def test_it_diverges_beyond_two_over_the_gain(lr: float, grows: bool) -> None:
    """lr L d/s against 2; of R' R with SRHT without replacement that holds in every draw."""
    w = models(quick(bowl(), sketched(Srht(count=4), lr=lr), 30))[:, 0].square().sum(1)
    assert bool((w[1:] > w[:-1]).all()) if grows else bool((w[1:] < w[:-1]).all())


@pytest.mark.parametrize(("fresh", "dimensions"), [(False, 4), (True, 21)])
def test_with_one_sketch_for_all_rounds_models_stay_in_its_dimensions(fresh: bool, dimensions: int) -> None:
    moved = models(quick(classification([20, 30]), sketched(Srht(count=4, fresh=fresh), lr=1.0, count=3), 40))[:, 0]
    assert int(torch.linalg.matrix_rank(moved - moved[0], rtol=1e-4)) == dimensions


def test_four_bytes_a_number_both_ways() -> None:
    """In the first round there is nothing to hear; what is more than numbers is the frame of a message."""
    size = {}
    for count in (16, 32):
        fed = quick(quadratics(torch.ones(3, 64)), sketched(Srht(count=count)), 4)
        size[count] = row_bytes({"sketch": torch.zeros(1, count)})
        assert fed.ledger.bytes_up == 4 * 3 * size[count]
        assert events(fed, "dispatch")["bytes_down"].tolist() == [0] * 3 + [size[count]] * 9
    assert size[32] - size[16] == 4 * 16


def test_who_missed_rounds_hears_their_y_or_the_model() -> None:
    fed = quick(quadratics(torch.ones(6, 64)), sketched(Srht(count=16), schedule=Rounds(cohort=Count(2))), 12)
    one, whole = row_bytes({"sketch": torch.zeros(1, 16)}), row_bytes({"model": torch.zeros(1, 64, dtype=torch.float64)})
    table, heard = events(fed, "dispatch"), dict.fromkeys(range(6), 0)
    seen = set()
    for node, version, down in zip(*(table[name].tolist() for name in ("node", "version", "bytes_down")), strict=True):
        missed = int(version - heard[node])
        assert down == min(missed * one, whole)
        heard[node] = version
        seen.add(missed)
    assert {1, 2} <= seen and max(seen) * one > whole


def test_a_codec_may_shrink_the_sketch_on_its_way_up() -> None:
    task = quadratics(normal(fold(1, torch.arange(3)), 512).double())
    plain, coded = (quick(task, sketched(Srht(count=256), uplink=uplink), 30) for uplink in (Float16(), Qsgd(levels=7)))
    optimum = task.inputs[:, 1:].mean(0)
    assert coded.ledger.bytes_up < plain.ledger.bytes_up < 30 * 3 * row_bytes({"sketch": torch.zeros(1, 256)})
    assert all(bool((fed.state["model"][0] - optimum).norm() < 0.3 * optimum.norm()) for fed in (plain, coded))


@pytest.mark.parametrize("sketch", SKETCHES, ids=repr)
def test_what_a_message_exposes_is_the_gradients_sketch_and_has_a_slope(sketch: Sketch) -> None:
    strategy, keys = sketched(sketch), fold(0, "shared", torch.arange(3))
    gradient = normal(fold(2, torch.arange(3)), 16).requires_grad_()
    seen = strategy.exposed(gradient, keys)
    (slope,) = torch.autograd.grad((seen * seen).sum(), gradient)
    assert torch.equal(seen, sketch.sketch(gradient.detach(), keys))
    assert torch.allclose(slope, 2 * sketch.desketch(seen.detach(), 16, keys))


def test_a_client_is_hidden_by_clipping_sketches_and_noise_on_their_mean() -> None:
    centres = normal(fold(1, torch.arange(4)), 16).double()
    coins = Rounds(sampling=BernoulliSampling(PerNode(0.3)))
    plain = sketched(Srht(count=8))
    expected = models(quick(quadratics(centres), plain, 5))
    assert torch.allclose(models(quick(quadratics(centres), replace(plain, privacy=Gaussian(1e6, 0)), 5)), expected, atol=1e-6)
    moved = models(quick(quadratics(centres), replace(plain, privacy=Gaussian(0.01, 1), schedule=coins), 20))[:, 0].diff(dim=0)
    assert bool((moved.norm(dim=1) > 0).all())  # also where nobody came


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sketch": Srht(count=17)}, r"strategy.sketch: `count: 17` of a part of 16 numbers"),
        ({"sketch": SparseSketch(count=3)}, r"strategy.sketch: .* has no 4 blocks"),
        ({"uplink": Ef14(TopK(count=1))}, r"uplink: what `ef14` remembers is of another sketch each round; use a codec without memory"),
        ({"uplink": Ef21(TopK(count=1))}, r"uplink: what `ef21` remembers"),
        ({"downlink": Float16()}, r"downlink: under `sketched` clients hear the mean of the sketches"),
        ({"schedule": Buffered(size=1)}, r"schedule: sketches of different rounds don't add up"),
    ],
)
def test_what_has_no_meaning_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        quick(bowl(), sketched(**{"sketch": Srht(count=4)} | settings), 1)


def test_error_feedback_on_one_sketch_for_all_is_allowed() -> None:
    sketch = Srht(count=8, fresh=False)
    w = models(quick(bowl(), sketched(sketch, uplink=Ef14(TopK(count=2))), 100))
    first, last = (sketch.squeeze(one, fold(0)[None])[0].norm() for one in (w[0], w[-1]))
    assert bool(last < 0.01 * first)


def test_running_statistics_are_refused() -> None:
    with pytest.raises(SettingError, match=r"task.model: has running statistics"):
        quick(normed(), sketched(Srht()), 1)
