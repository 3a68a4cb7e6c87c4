"""Attacks on losses with known worst cases, and what holds for every sample: the ball, the box, and zero where there is no slope."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tools import classification, quadratics
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, normal, uniform
from fedsim.method.attacks import Attack, Fgsm, Pgd, Slopes
from fedsim.task.task import Task

W = torch.tensor([2.0, -1.0, 0.0, 0.5], dtype=torch.float64)
KEYS = fold(0, torch.arange(8)).view(2, 4)


def logistic(y: Tensor, w: Tensor = W) -> Slopes:
    """log(1 + exp(-y w'x)) of samples [m, B, p] with y [m, B] in {-1, 1}."""

    def slopes(x: Tensor) -> tuple[Tensor, Tensor]:
        margin = y * (x @ w)
        return torch.nn.functional.softplus(-margin), (-y * torch.sigmoid(-margin))[..., None] * w

    return slopes


def waves(x: Tensor) -> tuple[Tensor, Tensor]:
    """A loss with many tops: the sum of sin(20 x)."""
    return torch.sin(20 * x).flatten(2).sum(-1), 20 * torch.cos(20 * x)


def samples(*shape: int) -> Tensor:
    return normal(fold(1, torch.arange(8)).view(2, 4), int(torch.tensor(shape).prod())).view(2, 4, *shape).double()


def free(attack: Attack, x: Tensor, slopes: Slopes, key: Tensor = KEYS) -> Tensor:
    return attack.perturb(x, slopes, key, None)


Y = torch.tensor([[1.0, -1, 1, -1], [-1, -1, 1, 1]], dtype=torch.float64)


@pytest.mark.parametrize(("norm", "worst"), [("linf", W.sign()), ("l2", W / W.norm())], ids=["linf", "l2"])
def test_fgsm_on_a_linear_model_is_the_worst_case(norm: Any, worst: Tensor) -> None:
    """x - y rho sign(w), or x - y rho w/|w|; the loss log(1 + exp(-(y w'x - rho |w|))) with |w| in the dual norm."""
    x, rho = samples(4), 0.3
    found = free(Fgsm(norm, rho), x, logistic(Y))
    torch.testing.assert_close(found, x - rho * Y[..., None] * worst, rtol=1e-12, atol=1e-14)
    dual = W.abs().sum() if norm == "linf" else W.norm()
    torch.testing.assert_close(logistic(Y)(found)[0], torch.nn.functional.softplus(-(Y * (x @ W) - rho * dual)), rtol=1e-12, atol=1e-14)


def test_pgd_whose_steps_cross_the_ball_ends_at_the_worst_case_from_any_start() -> None:
    x, rho = samples(4), 0.3
    found = free(Pgd("linf", rho, steps=8, step=rho / 4), x, logistic(Y))  # 8 rho / 4 = 2 rho
    moved = W != 0  # where the slope is 0 it stays where it began
    torch.testing.assert_close(found[..., moved], (x - rho * Y[..., None] * W.sign())[..., moved], rtol=1e-12, atol=1e-14)
    short = free(Pgd("linf", rho, steps=7, step=rho / 4), x, logistic(Y))
    assert not torch.allclose(short[..., moved], found[..., moved], atol=1e-3)
    found = free(Pgd("l2", rho, steps=200, step=rho), x, logistic(Y))
    torch.testing.assert_close(found, x - rho * Y[..., None] * W / W.norm(), rtol=1e-8, atol=1e-8)


@given(
    norm=st.sampled_from(["linf", "l2"]),
    radius=st.floats(1e-4, 3),
    steps=st.integers(0, 4),
    step=st.one_of(st.none(), st.floats(1e-4, 10)),
    start=st.booleans(),
    restarts=st.integers(1, 3),
    keep=st.sampled_from(["last", "best"]),
    seed=st.integers(0, 10**6),
    power=st.integers(-42, 30),
)
def test_every_sample_stays_within_its_ball_and_the_box(
    norm: Any, radius: float, steps: int, step: float | None, start: bool, restarts: int, keep: Any, seed: int, power: int
) -> None:
    """Whatever the slopes are: of any size, and 0 for some samples and places."""
    x = uniform(fold(seed, torch.arange(8)).view(2, 4), 6).view(2, 4, 2, 3)

    def slopes(at: Tensor) -> tuple[Tensor, Tensor]:
        slope = normal(fold(seed, "slope", torch.arange(8)).view(2, 4), 6).view(at.shape) * 10.0**power + waves(at)[1] * 0
        slope[0, 0], slope[1, 1, 0] = 0, 0
        return waves(at)[0], slope

    attack = Pgd(norm, radius, steps=steps, step=step, random_start=start, restarts=restarts if start else 1, keep=keep)
    found = attack.perturb(x, slopes, fold(seed, torch.arange(8)).view(2, 4), (x.clamp(max=0), x.clamp(min=1)))
    assert found.isfinite().all() and float(found.min()) >= 0 and float(found.max()) <= 1
    change = (found - x).flatten(2)
    assert float((change.abs().amax(-1) if norm == "linf" else change.norm(dim=-1)).max()) <= radius + 1e-6


def test_the_ball_comes_first_and_then_the_box() -> None:
    x = torch.tensor([[[0.5, 0.9]]], dtype=torch.float64)
    bounds = torch.zeros_like(x), torch.ones_like(x)

    def up(at: Tensor) -> tuple[Tensor, Tensor]:
        return at[..., 0], torch.tensor([[[3.0, 4.0]]], dtype=torch.float64)

    def moved(norm: Any, radius: float, step: float) -> Tensor:
        return Pgd(norm, radius, steps=1, step=step, random_start=False).perturb(x, up, KEYS[:1, :1], bounds)[0, 0]

    torch.testing.assert_close(moved("linf", 0.25, 0.5), torch.tensor([0.75, 1.0]).double())  # 1.15 is out of the box
    # a step of 1 along (3, 4) / 5 goes to (1.1, 1.7); half of it is on the ball: (0.8, 1.3), and its second number in the box is 1
    torch.testing.assert_close(moved("l2", 0.5, 1.0), torch.tensor([0.8, 1.0]).double())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_a_slope_nothing_moves(norm: Any) -> None:
    x = samples(2, 3)
    assert torch.equal(free(Fgsm(norm, 0.3), x, lambda at: (waves(at)[0], torch.zeros_like(at))), x)
    tiny = torch.zeros_like(x).float()
    tiny[..., 0, 1] = 1e-40  # a sample that the model is sure of; its square is 0 in float32
    found = free(Fgsm(norm, 0.3), x.float(), lambda at: (waves(at)[0], tiny)) - x.float()
    torch.testing.assert_close(found[..., 0, 1], torch.full((2, 4), 0.3))
    assert not found[..., 0, 0].any() and not found[..., 1, :].any()


def test_a_step_is_by_default_two_and_a_half_radii_over_the_steps() -> None:
    x = samples(4)
    short = free(Pgd("linf", 1.0, steps=10, random_start=False), x, lambda at: (at.sum(-1), torch.ones_like(at)))
    torch.testing.assert_close(short, x + 1)  # ten steps of a quarter
    one = Pgd("linf", 1.0, steps=100, random_start=False, step=0.25)
    assert torch.equal(free(replace(one, steps=3), x, lambda at: (at.sum(-1), torch.ones_like(at))), x + 0.25 + 0.25 + 0.25)


def test_the_best_of_all_points_never_has_less_loss_than_the_sample_nor_less_with_more_steps() -> None:
    x = samples(3)
    clean = waves(x)[0]
    for start in (False, True):
        last = clean
        for steps in range(6):
            attack = Pgd("linf", 0.4, steps=steps, step=0.13, random_start=start, keep="best")
            loss = waves(free(attack, x, waves))[0]
            assert (loss >= last).all()
            last = loss
    rough = waves(free(Pgd("linf", 0.4, steps=5, step=0.13, random_start=False), x, waves))[0]
    assert (rough < clean).any()  # the last point may be worse than none


def test_small_steps_up_a_smooth_loss_raise_it() -> None:
    x = samples(4)
    found = free(Pgd("l2", 0.1, steps=5, step=0.02, random_start=False), x, logistic(Y))
    assert (logistic(Y)(found)[0] > logistic(Y)(x)[0]).all()


def test_of_several_starts_each_sample_keeps_the_end_of_greatest_loss() -> None:
    x = samples(3)
    attack = Pgd("linf", 0.4, steps=3, step=0.02)
    ends = [waves(free(attack, x, waves, KEYS))[0]]
    for restarts in (2, 3, 4):
        ends.append(waves(free(replace(attack, restarts=restarts), x, waves, KEYS))[0])
        assert (ends[-1] >= ends[-2]).all()  # the first starts are the same ones
    assert (ends[-1] > ends[0]).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_are_even_in_the_ball_and_a_function_of_the_key_alone(norm: Any) -> None:
    """In a ball of three dimensions (|change| / radius)^3 is uniform: mean 1/2 with deviation 1 / sqrt(12 n); a number's mean is 0."""
    keys, attack = fold(3, torch.arange(4000))[None], Pgd(norm, 0.5, steps=0)
    x = torch.zeros(1, 4000, 3)
    found = free(attack, x, waves, keys)
    assert float(found.mean()) == pytest.approx(0, abs=0.5 / 12000**0.5 * 5)
    share = (found / 0.5).abs() if norm == "linf" else (found.norm(dim=-1) / 0.5) ** 3
    assert float(share.mean()) == pytest.approx(0.5, abs=5 / (12 * share.numel()) ** 0.5) and float(share.max()) <= 1 + 1e-6
    assert torch.equal(free(attack, x[:, 7:9], waves, keys[:, 7:9]), found[:, 7:9])
    assert not torch.equal(free(attack, x[:, :1], waves, keys[:, 1:2]), found[:, :1])


def shown(low: float, high: float) -> Task:
    """A task whose training samples go from low to high."""
    task = classification([4])
    task.inputs = torch.linspace(low, high, 24).view(4, 6)
    return task


def test_the_box_is_by_default_where_all_training_samples_lie() -> None:
    def up(at: Tensor) -> tuple[Tensor, Tensor]:
        return at.sum(-1), torch.ones_like(at)

    def moved(attack: Attack, task: Task, x: Tensor) -> Tensor:
        return attack.of(task, x[None], up, KEYS[:1, : len(x)])[0]

    x, attack = torch.full((1, 6), 0.9), Fgsm("linf", 0.5)
    assert torch.equal(moved(attack, shown(0, 1), x), torch.ones(1, 6))
    assert torch.equal(moved(attack, shown(-1, 1), x), x + 0.5)
    assert torch.equal(moved(replace(attack, box=None), shown(0, 1), x), x + 0.5)
    assert torch.equal(moved(replace(attack, box=(-2, 1.25)), shown(0, 1), x), torch.full((1, 6), 1.25))
    assert torch.equal(moved(attack, shown(0, 1), x + 0.5), x + 0.5)  # out of the box already: up to its own numbers
    images = classification([4])
    images.inputs = torch.arange(24, dtype=torch.uint8).view(4, 6) * 11
    assert images.span == pytest.approx((0, 23 * 11 / 255))
    assert torch.equal(moved(attack, images, x), torch.ones(1, 6))


def test_what_can_t_be_attacked_is_refused() -> None:
    tokens = quadratics([0.0])
    tokens.inputs = torch.zeros(2, 3, dtype=torch.int32)
    with pytest.raises(SettingError, match="here: an attack moves samples by small numbers, and the samples of this task are tokens"):
        Pgd().check(tokens, "here")
    with pytest.raises(SettingError, match=re.escape("here.box: training samples go from -1 to 1, out of the box")):
        Pgd(box=(0, 1)).check(shown(-1, 1), "here")
    Pgd(box=(-1, 1)).check(shown(-1, 1), "here")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"restarts": 2, "random_start": False}, "`restarts` differ by their random start"),
        ({"radius": float("inf")}, "`radius` is a number"),
        ({"box": (1.0, 0.0)}, "from the least to the greatest number, not from 1 to 0"),
    ],
)
def test_settings_without_meaning_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pgd(**settings)
