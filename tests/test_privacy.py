"""Client-level privacy: clipping, noise, what is refused; the account against closed forms, quadrature and opacus."""

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_buffers import normed
from tools import classification, durations, events, federation, inbox, merges, models, quadratics, steps
from tools import quick as run
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, normal
from fedsim.base.rows import Rows
from fedsim.codecs import Codec, TopK
from fedsim.federation.federation import Federation
from fedsim.method.average import ClippedMean, Krum, Median
from fedsim.method.inbox import Inbox
from fedsim.method.local import Local
from fedsim.privacy.gaussian import Gaussian
from fedsim.privacy.noisy import Adapt
from fedsim.privacy.release import PrivateInbox, Release
from fedsim.privacy.spent import epsilon, noise_for, releases_for
from fedsim.run.checkpoint import collect, restore
from fedsim.schedule import Buffered, Gossip, Rounds, Ticks
from fedsim.schedule.news import NO_NEWS
from fedsim.schedule.sampling import BernoulliSampling
from fedsim.settings.choice import Choice
from fedsim.settings.values import Count, PerNode
from fedsim.task.task import Task
from fedsim.world import World
from fedsim.world.attackers import Alie, InnerProduct, SignFlip
from strategies.dsgd import Dsgd
from strategies.fedasync import FedAsync
from strategies.fedavg import FedAvg
from strategies.fedbuff import FedBuff
from strategies.fedfix import FedFix
from strategies.fedstale import FedStale

ALL = Rounds(cohort=Count())
DELTA = 1e-5


def coins(chance: Any) -> Rounds:
    return Rounds(sampling=BernoulliSampling(PerNode(chance)))


def private(clip: float = 1.0, noise: float = 1.0, schedule: Any = ALL, **settings: Any) -> FedAvg:
    return FedAvg(train=steps(), schedule=schedule, weights="uniform", privacy=Gaussian(clip, noise), **settings)


def released(fed: Federation) -> Release:
    found = fed.companion(Release)
    assert found
    return found


# Clipping


def test_all_parts_are_clipped_as_one_vector():
    parts = {"update": torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]), "control": torch.tensor([[12.0], [1.2], [0.0]])}
    clipped = Gaussian(6.5, 1).clipped(parts)  # lengths 13, 1.3 and 0
    assert clipped["update"].tolist() == [[1.5, 2.0], parts["update"][1].tolist(), [0, 0]]
    assert clipped["control"].tolist() == [[6.0], [parts["control"][1].item()], [0]]


@given(st.lists(st.floats(-100, 100), min_size=4, max_size=4), st.floats(0.01, 50))
def test_clipping_keeps_direction_and_what_is_short_and_is_idempotent(numbers, clip):
    x = torch.tensor([numbers], dtype=torch.float64)
    once = Gaussian(clip, 1).clipped({"a": x[:, :1], "b": x[:, 1:]})
    y = torch.cat([once["a"], once["b"]], 1)
    assert y.norm() <= clip * (1 + 1e-12)
    assert (y * x.norm() - x * y.norm()).abs().max() <= 1e-9 * max(1, x.norm())
    assert x.norm() > clip * (1 - 1e-12) or torch.equal(x, y)
    assert (Gaussian(clip, 1).clipped(once)["a"] - once["a"]).abs() <= 1e-12 * clip


def test_whole_numbers_are_refused():
    with pytest.raises(SettingError, match="`places` of whole numbers"):
        Gaussian(1, 1).clipped({"places": torch.ones(2, 3, dtype=torch.int64)})


# What is released


def test_without_noise_and_with_a_wide_clip_it_is_fedavg_with_uniform_weights():
    task = quadratics([[1.0, 2.0], [3.0, -4.0], [0.5, 7.0]], [1.0, 2.0, 3.0], samples=[1, 2, 3])
    plain = FedAvg(train=steps(3), schedule=ALL, weights="uniform")
    expected, found = models(run(task, plain, 5)), models(run(task, replace(plain, privacy=Gaussian(1e6, 0)), 5))
    assert torch.allclose(found, expected, rtol=1e-14, atol=0) and expected[-1].abs().min() > 0.1


def test_the_sum_is_divided_by_the_expected_cohort_whoever_came():
    centres = torch.tensor([2.0, -4.0, 6.0, 8.0, -1.0]).double()
    fed = run(quadratics(centres), private(1e6, 0, coins((0.5, 0.1, 0.4, 0.9, 0.6))), 30)
    cohorts = [[node for node, _ in news] for _, news in merges(fed)]
    assert len({len(cohort) for cohort in cohorts}) > 2 and released(fed).expected == 2.5
    x = [0.0]
    for cohort in cohorts:
        x.append(x[-1] + sum(0.1 * (centres[node].item() - x[-1]) for node in cohort) / 2.5)
    assert models(fed)[:, 0, 0].tolist() == pytest.approx(x, rel=1e-12)


def test_one_round_by_hand():
    # updates are a tenth of the centres: lengths 5, 0.5 and 1.3; clipped to 1 they sum to (0.6 - 0.5 + 5/13, 0.8 + 12/13); 3 expected
    fed = run(quadratics([[30.0, 40.0], [-5.0, 0.0], [5.0, 12.0]]), private(1.0, 0), 1)
    assert models(fed)[1, 0].tolist() == pytest.approx([(0.6 - 0.5 + 5 / 13) / 3, (0.8 + 12 / 13) / 3], rel=1e-12)


@pytest.mark.parametrize(("schedule", "expected"), [(ALL, 4), (coins(0.25), 1), (Rounds(cohort=Count(2)), 2)])
def test_noise_has_the_standard_deviation_of_clips_over_the_expected_cohort(schedule, expected):
    clip, noise, rounds, size = 0.5, 3.0, 20, 1000
    fed = run(quadratics(torch.zeros(4, size)), private(clip, noise, schedule, server_lr=1.0), rounds)
    # updates, which pull back to 0, are clipped to a length that is nothing beside that of the noise over 1000 numbers
    moved = models(fed)[1:, 0] - models(fed)[:-1, 0]
    ratio = moved.std().item() / (clip * noise / expected)
    assert abs(ratio - 1) < 0.03
    assert abs(moved.mean().item()) < 4 * clip * noise / expected / math.sqrt(rounds * size)


def noisy(fed: Federation, version: int, **parts: Any) -> Inbox:
    weight = [1.0] * len(next(iter(parts.values())))
    return released(fed).seen(inbox(weight, **parts), NO_NEWS, version)


def test_noise_is_drawn_once_a_part_and_anew_for_each_merge_and_part():
    fed = federation(quadratics(torch.zeros(4, 2)), private())
    zeros = torch.zeros(4, 4000)
    first, second = noisy(fed, 3, update=zeros, control=zeros), noisy(fed, 4, update=zeros, control=zeros)
    draws = [one.mean(name, "uniform")[0] for one in (first, second) for name in ("update", "control")]
    assert torch.equal(first.mean("update", "uniform")[0], draws[0])
    for a in range(4):
        for b in range(a):
            assert abs(torch.corrcoef(torch.stack([draws[a], draws[b]]))[0, 1]) < 4 / math.sqrt(4000)
    assert all(abs(draw.std() * 4 - 1) < 0.05 for draw in draws)


@given(st.lists(st.lists(st.floats(-9, 9), min_size=3, max_size=3), min_size=2, max_size=5), st.floats(0.1, 5), st.data())
def test_one_client_moves_the_sums_of_all_parts_together_by_no_more_than_a_clip(rows, clip, data):
    x = torch.tensor(rows, dtype=torch.float64)
    factor = torch.tensor(data.draw(st.lists(st.floats(0, 1), min_size=len(x), max_size=len(x))), dtype=torch.float64)
    y = x.clone()
    y[data.draw(st.integers(0, len(x) - 1))] = 0
    release = SimpleNamespace(clip=clip, noisy=lambda sums, *_: sums / 4)
    news = [inbox([1.0] * len(x), update=one[:, :2], control=one[:, 2:]) for one in (x, y)]
    both = [PrivateInbox(one, cast(Release, release), 1) for one in news]
    sums = [torch.cat([one.mean(name, "uniform", factor)[0] * 4 for name in ("update", "control")]) for one in both]
    assert (sums[0] - sums[1]).norm() <= clip * (1 + 1e-12)


def test_a_codec_that_lengthens_messages_does_not_move_the_model_further():
    fed = run(quadratics([[3.0, 4.0]] * 2), private(1.0, 0, uplink=Loud()), 1)
    assert models(fed)[1, 0].tolist() == pytest.approx([0.6, 0.8], rel=1e-12)
    fed = run(quadratics([[30.0, 40.0]] * 2), private(1.0, 0, uplink=TopK(count=1)), 1)  # clipped to (0.6, 0.8) before
    assert models(fed)[1, 0].tolist() == pytest.approx([0, 0.8], rel=1e-12)


def test_attackers_move_the_model_by_a_clip_at_most():
    world = World(attackers=SignFlip(nodes=Choice(ids=range(0, 1)), factor=1000.0))
    fed = run(quadratics([[3.0, 4.0]] * 2), private(1.0, 0), 1, world=world)  # (0.3, 0.4) and what was that times -1000, clipped
    assert models(fed)[1, 0].tolist() == pytest.approx([(0.3 - 0.6) / 2, (0.4 - 0.8) / 2], rel=1e-12)
    for attackers in (Alie(nodes=Choice("even")), InnerProduct(nodes=Choice("even"))):
        with pytest.raises(SettingError, match="knows what others send"):
            federation(quadratics([1.0, 2.0]), private(), world=World(attackers=attackers))


@dataclass(frozen=True)
class Loud(Codec):
    """Ten times as long on arrival."""

    def decode(self, wire: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        return {name: 10 * rows for name, rows in wire.items()}, memory


def test_a_round_to_which_nobody_came_is_a_release_where_coins_are_secret():
    fed = run(quadratics([[1.0, 2.0]] * 3), private(1.0, 1.0, coins(0.1)), 12)
    empty = [at for at, (_, news) in enumerate(merges(fed)) if not news]
    moved = models(fed)[1:, 0] - models(fed)[:-1, 0]
    assert empty and len(empty) < 12 and all(moved[at].abs().min() > 0 for at in empty)
    assert released(fed).most == 12


def test_elsewhere_a_tick_without_messages_releases_nothing():
    fed = run(quadratics([[1.0, 2.0]] * 3), private(1.0, 1.0, Ticks(every=1)), world=durations(2, 2, 4), seconds=4)
    moved = models(fed)[1:, 0] - models(fed)[:-1, 0]
    assert [len(news) for _, news in merges(fed)] == [0, 2, 0, 3]
    assert [bool(one.any()) for one in moved] == [False, True, False, True]
    assert released(fed).times.tolist() == [2, 2, 1] and released(fed).expected == pytest.approx(0.5 + 0.5 + 0.25)


def test_fedbuff_discounts_clipped_messages():
    fed = federation(quadratics(torch.zeros(4, 2)), private(1.0, 0))
    seen = released(fed).seen(inbox([0.1, 0.9], age=[0, 3], update=[[3.0, 4.0], [0.0, 0.5]]), NO_NEWS, 1)
    after = FedBuff().merge({"model": torch.zeros(1, 2, dtype=torch.float64)}, seen)["model"][0]
    assert after.tolist() == pytest.approx([0.6 / 4, (0.8 + 0.5 / 2) / 4])  # 1 / sqrt(1 + 3)
    with pytest.raises(ValueError, match="lengthen"):
        seen.mean("update", "uniform", torch.tensor([1.0, 1.5]))


# What is refused


@dataclass(frozen=True)
class Peeking(FedAvg):
    """Asks for one thing that is hidden."""

    name = "peeking"
    at: str = ""

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        if self.at == "part":
            inbox["update"]
        elif self.at == "sum":
            inbox.sum("update")
        else:
            getattr(inbox, self.at)
        return state


@pytest.mark.parametrize("at", ["part", "sum", "parts", "weight", "sender", "chance", "frequency"])
def test_nothing_but_noisy_means_is_seen(at):
    strategy = Peeking(train=steps(), schedule=ALL, weights="uniform", privacy=Gaussian(1, 1), at=at)
    with pytest.raises(SettingError, match="strategy: `peeking`"):
        federation(quadratics([1.0, 2.0]), strategy)
    federation(quadratics([1.0, 2.0]), replace(strategy, privacy=None))


def test_how_many_came_is_hidden_behind_how_many_were_expected():
    assert noisy(federation(quadratics(torch.zeros(8, 2)), private()), 0, update=torch.zeros(3, 2)).count == 8
    assert inbox([1.0, 1.0], update=[1, 2]).count == 2


@pytest.mark.parametrize(
    ("strategy", "key", "message"),
    [
        (FedAvg(schedule=ALL), "strategy", "weights: uniform"),
        (FedStale(schedule=ALL), "strategy", "noisy means only"),
        (FedAsync(), "strategy", "noisy means only"),
        (FedFix(schedule=ALL), "strategy", "noisy means only"),
        *(
            (FedAvg(schedule=ALL, weights="uniform", average=one), "strategy", "noisy means only")
            for one in (Median(), Krum(), ClippedMean())
        ),
        (Dsgd(schedule=Gossip()), "privacy", "added at a server"),
    ],
)
def test_what_has_no_meaning_with_privacy_is_refused(strategy, key, message):
    with pytest.raises(SettingError, match=message) as error:
        federation(quadratics([1.0] * 4), replace(strategy, train=steps(), privacy=Gaussian(1, 1)), world=durations(1, 2, 1, 2))
    assert error.value.key == key


def test_running_statistics_must_stay_at_home():
    strategy = replace(private(), train=steps(1, batch=3))
    with pytest.raises(SettingError, match="running statistics"):
        federation(normed(), strategy)
    assert released(run(normed(keep="local"), strategy, 2)).most == 2


def test_settings_are_checked():
    for settings, message in [
        ({}, "is due"),
        ({"noise": 1.0, "epsilon": 1.0}, "exclude"),
        ({"noise": math.inf}, "finite"),
        ({"noise": 1e-9}, "hides nobody"),
    ]:
        with pytest.raises(ValueError, match=message):
            Gaussian(1, **settings)
    with pytest.raises(SettingError, match=r"below 0\.25 protects"):
        federation(quadratics([1.0] * 4), replace(private(), privacy=Gaussian(1, 1, delta=0.25)))
    with pytest.raises(SettingError, match="nobody is ever asked"):
        federation(quadratics([1.0] * 4), private(schedule=coins(0.0)))


# The clip follows the messages


def adaptive(z: float = 0.0, **settings: Any) -> FedAvg:
    return replace(private(schedule=ALL), privacy=Gaussian(1.0, z, adapt=Adapt(**settings)))


def test_two_rounds_of_a_clip_by_hand():
    # lengths 5, 0.5 and 1.3 at first: one of three is no longer than 1; then updates of what is left to the centres
    fed = run(quadratics([[30.0, 40.0], [-5.0, 0.0], [5.0, 12.0]]), adaptive(quantile=0.5, rate=0.3), 2)
    one = math.exp(-0.3 * (1 / 3 - 1 / 2))
    x = models(fed)[1, 0]
    assert x.tolist() == pytest.approx([(0.6 - 0.5 + 5 / 13) / 3, (0.8 + 12 / 13) / 3], rel=1e-12)  # clipped to 1, by the server
    updates = 0.1 * (torch.tensor([[30.0, 40.0], [-5.0, 0.0], [5.0, 12.0]]).double() - x)
    lengths = updates.norm(dim=1)
    assert models(fed)[2, 0].tolist() == pytest.approx(
        (x + (updates * (one / lengths).clamp(max=1)[:, None]).sum(0) / 3).tolist(), rel=1e-12
    )
    assert released(fed).clip == pytest.approx(one * math.exp(-0.3 * (int((lengths <= one).sum()) / 3 - 1 / 2)), rel=1e-12)


@pytest.mark.parametrize("quantile", [0.25, 0.5, 0.8])
def test_the_clip_goes_to_the_quantile(quantile):
    """Of lengths 1 to 20, which stay as they are: the server does not move."""
    fed = run(quadratics(10 * torch.arange(1.0, 21.0)), replace(adaptive(quantile=quantile, rate=0.1), server_lr=1e-12), 120)
    assert 20 * quantile - 0.5 <= released(fed).clip <= 20 * quantile + 1.5


@given(st.floats(0.1, 5), st.floats(1, 1e4))
def test_both_noises_cost_what_one_did(noise, expected):
    spread, counted = Adapt(noise=noise * expected).split(noise, 1.0)
    assert spread**-2 + (2 * counted) ** -2 == pytest.approx(noise**-2) and spread >= noise
    assert Adapt().split(1.0, 100.0) == (pytest.approx((1 - 0.01) ** -0.5), 5.0)  # sigma_b is a twentieth of the cohort


def test_noise_is_as_wide_as_the_clip_of_its_merge_and_the_number_within_is_noisy():
    task, size = quadratics(torch.zeros(4, 1000)), 1000
    fed = run(task, adaptive(1.0, noise=1.0, rate=0.5), 6)
    spread, clip = (1 - 0.25) ** -0.5, [1.0]
    for version in range(6):  # all four are short at first; then the noise, which they pull back from, is longer than the clip
        moved = models(fed)[version + 1, 0] - models(fed)[version, 0]
        updates = -0.1 * models(fed)[version, 0]
        short = 4.0 if updates.norm() <= clip[-1] else 0.0
        wide = spread * clip[-1] / 4
        pull = updates if short else updates * clip[-1] / updates.norm()
        assert abs((moved - pull).std().item() / wide - 1) < 4 / math.sqrt(2 * size)
        drawn = normal(fold(released(fed).key, version, "within"), 1)[0].item()
        clip.append(clip[-1] * math.exp(-0.5 * (0.5 + (short - 2 + drawn) / 4 - 0.5)))
    assert released(fed).clip == pytest.approx(clip[-1], rel=1e-6) and len({*clip}) == 7
    plain = run(task, private(1.0, 1.0), 6)
    assert released(fed).epsilon == released(plain).epsilon > 0


def test_a_clip_that_can_not_follow_is_refused():
    with pytest.raises(SettingError, match=r"privacy\.adapt\.noise: 0\.2: more than half the noise of 1 clips is due"):
        federation(quadratics([1.0] * 4), adaptive(1.0))  # a twentieth of 4
    with pytest.raises(ValueError, match="`adapt` is for clients' messages"):
        Gaussian(1.0, 1.0, unit="sample", adapt=Adapt())


# What it costs


def tail(x: float) -> float:
    return math.erfc(x / math.sqrt(2)) / 2


@pytest.mark.parametrize(("noise", "releases"), [(1.0, 1), (0.5, 1), (4.0, 10), (10.0, 100), (3.730631634815942, 1)])
def test_gaussians_cost_what_balle_and_wang_say(noise, releases):
    mu, found = math.sqrt(releases) / noise, epsilon(noise, DELTA, releases)
    assert tail(found / mu - mu / 2) - math.exp(found) * tail(found / mu + mu / 2) == pytest.approx(DELTA, rel=1e-6)
    assert found == pytest.approx(epsilon(noise / math.sqrt(releases), DELTA, 1), rel=1e-9)
    if noise > 3.73 and releases == 1:  # the noise that their algorithm gives for epsilon 1
        assert found == pytest.approx(1, rel=1e-6)


def test_nothing_released_costs_nothing_and_without_noise_there_is_no_privacy():
    assert epsilon(1, DELTA, 0) == 0 and epsilon(1, DELTA, 5, 0.0) == 0
    assert epsilon(0, DELTA, 1) == math.inf and epsilon(0, DELTA, 1, 0.1) == math.inf
    assert epsilon(1e6, DELTA, 1) == 0  # delta alone is enough


@pytest.mark.parametrize(("chance", "noise", "releases"), [(0.05, 1.0, 100), (0.01, 0.7, 500), (0.2, 2.0, 30)])
def test_sampled_gaussians_cost_what_opacus_says(chance, noise, releases):
    from opacus.accountants import PRVAccountant, RDPAccountant

    found, theirs, numeric = epsilon(noise, DELTA, releases, chance), RDPAccountant(), PRVAccountant()
    theirs.history = numeric.history = [(noise, chance, releases)]
    assert found == pytest.approx(theirs.get_epsilon(DELTA), rel=1e-3) and found <= theirs.get_epsilon(DELTA)
    assert numeric.get_epsilon(DELTA) - 0.01 < found < 1.3 * numeric.get_epsilon(DELTA)
    assert found < epsilon(noise, DELTA, releases)


@pytest.mark.parametrize(("chance", "noise"), [(0.1, 1.0), (0.5, 0.8), (0.95, 2.0)])
def test_one_sampled_gaussian_keeps_its_promise_by_quadrature(chance, noise):
    """Both ways of removing and adding: P = (1 - q) N(0) + q N(1) against N(0); delta is the mass where P > e^epsilon Q."""
    x = np.linspace(-15 * noise, 1 + 15 * noise, 400_001)
    without = np.exp(-(x**2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))
    p = (1 - chance) * without + chance * np.exp(-((x - 1) ** 2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))
    found = math.exp(epsilon(noise, DELTA, 1, chance))
    for one, other in ((p, without), (without, p)):
        assert np.maximum(one - found * other, 0).sum() * (x[1] - x[0]) <= DELTA * (1 + 1e-6)


def test_more_releases_cost_more_and_coins_or_noise_make_them_cheaper():
    for chance in (None, 0.1):
        assert epsilon(1, DELTA, 10, chance) < epsilon(1, DELTA, 11, chance) < epsilon(0.9, DELTA, 11, chance)
    assert epsilon(1, DELTA, 10, 0.1) < epsilon(1, DELTA, 10, 0.2) < epsilon(1, DELTA, 10, 0.999) <= epsilon(1, DELTA, 10)
    assert epsilon(1, DELTA, 10, 1.0) == epsilon(1, DELTA, 10)


@pytest.mark.parametrize("chance", [None, 0.05])
@pytest.mark.parametrize("goal", [0.5, 8.0])
def test_the_noise_for_a_budget_is_the_least(goal, chance):
    noise = noise_for(goal, DELTA, 50, chance)
    assert epsilon(noise, DELTA, 50, chance) <= goal < epsilon(noise * 0.998, DELTA, 50, chance)
    assert releases_for(goal, noise, DELTA, chance) == 50


def test_a_budget_that_no_noise_keeps_is_refused():
    with pytest.raises(ValueError, match="no noise is enough"):
        noise_for(1e-9, 1e-12, 100)
    assert noise_for(1e12, DELTA, 1) == noise_for(1e12, DELTA, 1, 0.1) == 1e-3


# Who spends what


def test_a_sampled_cohort_spends_by_the_client_asked_most():
    fed = run(quadratics(torch.zeros(6, 2)), private(1, 2.0, Rounds(cohort=Count(2))), 9)
    count = np.bincount(events(fed, "merge")["node"], minlength=6)
    assert released(fed).times.tolist() == count.tolist() and 3 <= count.max() < 9
    assert released(fed).epsilon == epsilon(2.0, DELTA, int(count.max()))


def test_twice_in_a_merge_costs_as_much_as_four():
    strategy = replace(private(1, 2.0), schedule=Buffered(size=2))
    fed = run(quadratics([1.0, 2.0, 3.0]), strategy, world=durations(1, 2, 5), seconds=3)
    assert merges(fed) == [(2, [(0, 0), (0, 0)]), (3, [(0, 0), (1, 1)])]
    assert released(fed).times.tolist() == [4 + 1, 1, 0] and released(fed).reserve == 4
    assert released(fed).epsilon == epsilon(2.0, DELTA, 5)


def test_late_messages_spend_where_they_are_merged():
    strategy = replace(private(1, 2.0), schedule=Rounds(cohort=Count(), wait_for=1, late="keep"))
    fed = run(quadratics([1.0, 2.0, 3.0]), strategy, 6, world=durations(1, 1.5, 3.5))
    assert released(fed).times.tolist() == np.bincount(events(fed, "merge")["node"], minlength=3).tolist()
    assert released(fed).coin is None and released(fed).expected == 1


def test_coins_amplify_only_where_they_alone_decide():
    assert released(federation(quadratics([1.0] * 3), private(schedule=coins((0.1, 0.7, 0.2))))).coin == pytest.approx(0.7)
    for late in ({"wait_for": 1}, {"deadline": 3}):
        assert released(federation(quadratics([1.0] * 3), private(schedule=replace(coins(0.2), **late)))).coin is None


def planned(strategy: FedAvg, rounds: int | None) -> Federation:
    """As `tools.federation`, with a planned end."""
    fed = federation(quadratics([1.0] * 4), replace(strategy, privacy=None))
    if strategy.privacy:
        fed.ride(Release(Gaussian(1, epsilon=2.0), fed, fed.schedule, fed.task, rounds))
    return fed


@pytest.mark.parametrize("schedule", [ALL, coins(0.3), Rounds(cohort=Count(4))])
def test_noise_follows_from_the_planned_end(schedule):
    found = released(planned(private(schedule=schedule), 20))
    assert found.noise == noise_for(2.0, DELTA, 20, found.coin) > 0


def test_where_it_can_not_follow_that_is_said():
    with pytest.raises(SettingError, match=r"needs `stop\.rounds`"):
        planned(private(), None)
    with pytest.raises(SettingError, match="how often a client takes part"):
        planned(private(schedule=Rounds(cohort=Count(2))), 20)


# Runs


def strong(task: Task, rounds: int, **engine: Any) -> Federation:
    uplink = TopK(fraction=0.5)
    strategy = Twofold(train=steps(2, batch=4), schedule=coins(0.6), weights="uniform", privacy=Gaussian(0.3, 1.0), uplink=uplink)
    return federation(task, strategy, rounds, seed=5, **engine)


@dataclass(frozen=True)
class Twofold(FedAvg):
    """Two parts, both released."""

    name = "twofold"

    def start(self, x: Tensor, task: Task) -> Rows:
        return {"model": x, "control": torch.zeros_like(x)}

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        parts, memory = super().local_update(received, memory, local)
        return parts | {"control": 3 * parts["update"]}, memory

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        return super().merge(state, inbox) | {"control": state["control"] + self.mean(inbox, "control")}


def test_a_run_has_the_same_bits_in_any_grouping_and_after_a_checkpoint():
    task = classification([5, 9, 1, 7, 12, 3])
    whole = strong(task, 6)
    whole.run()
    assert whole.state["control"].abs().min() > 0
    for engine in ({"chunk": 1}, {"chunk": 2, "processes": 2}):
        other = strong(task, 6, **engine)
        other.run()
        other.worker.close()
        assert torch.equal(other.state["model"], whole.state["model"]) and torch.equal(other.state["control"], whole.state["control"])
    half, rest = strong(task, 3), strong(task, 6)
    half.run()
    spent = released(half).epsilon
    restore(rest, collect(half))
    rest.run()
    assert torch.equal(rest.state["model"], whole.state["model"])
    assert released(rest).epsilon == released(whole).epsilon > spent > 0


def test_an_inbox_without_privacy_is_the_inbox():
    plain = federation(quadratics([1.0, 2.0]), replace(private(), privacy=None))
    parts = {"update": torch.ones(0, 1, dtype=torch.float64)}
    assert plain.companion(Release) is None and type(plain.inbox(NO_NEWS, parts, None)) is Inbox
    assert isinstance(federation(quadratics([1.0, 2.0]), private()).inbox(NO_NEWS, parts, None), PrivateInbox)
