import pytest
import torch
from test_one_byte import alike
from tools import classification, models, quick

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, normal
from fedsim.codecs import Identity
from fedsim.settings.values import Constant
from strategies.zo_adamu import ZoAdamu

STATE = {"model": torch.zeros(5), "momentum": torch.tensor([1.0, -2, 3, 0.5, 4])}
KEYS = fold(3, torch.arange(2))


def test_without_fresh_noise_momentum_is_looked_along() -> None:
    # a = 1, b1 = 0: z2 is m exactly, and so is n
    n, _ = ZoAdamu(last=0, variance=1, fresh=0).directions(KEYS, STATE, 0)
    assert torch.equal(n, STATE["momentum"].expand(2, 5))


def test_before_annealing_steps_go_along_signs() -> None:
    # a = b1 = b2 = 1: n = z1 and v = z1^2, so a step is p sign(z1), not MeZO's
    n, way = ZoAdamu(first=5, last=9).directions(KEYS, STATE, 4)
    assert torch.equal(n, normal(fold(KEYS, "first"), 5))
    assert torch.allclose(way, n.sign(), atol=1e-3)


def test_annealing_by_hand() -> None:
    strategy = ZoAdamu(first=10, last=20)
    assert strategy.annealed(0) == strategy.annealed(10) == (1, 1, 1)
    assert strategy.annealed(15) == pytest.approx((0.75, 0.95, 0.505))
    assert strategy.annealed(20) == strategy.annealed(99) == pytest.approx((0.5, 0.9, 0.01))
    with pytest.raises(SettingError, match="3 is before `first`, 4"):
        ZoAdamu(first=4, last=3)


def test_machines_times_probes_are_one_machine_with_all_probes_bit_by_bit() -> None:
    one = quick(alike(1), ZoAdamu(probes=6, last=3, batch=5), 5)
    many = quick(alike(3), ZoAdamu(probes=2, last=3, batch=5), 5)
    assert torch.equal(models(one), models(many))
    assert torch.equal(one.state["momentum"], many.state["momentum"]) and bool(one.state["momentum"].any())


def test_momentum_is_the_mean_of_the_rounds_perturbations() -> None:
    strategy = ZoAdamu(probes=4, last=0, batch=5)
    fed = quick(alike(1), strategy, 1)
    first = {"model": fed.task.init, "momentum": fed.task.init * 0}
    keys = fold(fold(0, "shared", 0), "probe", torch.arange(4))
    assert torch.allclose(fed.state["momentum"][0], strategy.directions(keys, first, 0)[0].mean(0), atol=1e-6)


def test_it_learns() -> None:
    fed = quick(classification([40] * 4), ZoAdamu(probes=8, lr=Constant(0.2), batch="all", last=30, uplink=Identity()), 60)
    parts = fed.task.layout.views(fed.state["model"][0])
    right = (fed.task.test_inputs @ parts["weight"].T + parts["bias"]).argmax(1) == fed.task.test_targets
    assert right.float().mean() > 0.85
