"""Clips that follow earlier gradients: AdaGC and SPAM, their rules by hand and what they reduce to."""

from pathlib import Path
from typing import Any

import pytest
import torch
from launch import write
from tools import classification, quadratics, quick, run, steps

from fedsim.base.errors import ScenarioError
from fedsim.base.rows import Layout
from fedsim.method.clipping import AdaGc, Clip, Norm, Spam
from fedsim.method.optimizers import Adam
from fedsim.method.train import Train
from fedsim.scenario import load
from fedsim.schedule import Rounds
from fedsim.settings.values import Constant, Count
from strategies.fedavg import FedAvg

TWO = Layout({"a": (1,), "b": (2,)})


def test_adagc_by_hand() -> None:
    clip = AdaGc(ratio=1.25, decay=0.5, warmup=2, length=1.0)
    moments = clip.moments(torch.zeros(2, 3), TWO)
    other = {name: rows.clone() for name, rows in moments.items()}

    def cut(*slope: float) -> list[float]:
        # of the second row a tenth, which is never long: a row has norms of its own
        found = clip.cut(torch.tensor([slope, slope]) * torch.tensor([[1.0], [1e-3]]), moments, TWO)
        alone = clip.cut(torch.tensor([slope]), {name: rows[:1] for name, rows in other.items()}, TWO)
        assert torch.equal(found[:1], alone)
        return [pytest.approx(one) for one in found[0].tolist()]

    assert cut(3, 0, 4) == [0.6, 0, 0.8]  # |g| = 5 becomes 1
    assert cut(0.3, 0, 0.4) == [0.3, 0, 0.4]  # within 1: gamma is the least so far, (0.3, 0.4)
    assert moments["norms"][0].tolist() == [pytest.approx(0.3), pytest.approx(0.4)]
    assert cut(-1, 0.3, 0) == [-0.375, 0.3, 0]  # 1.25 x 0.3; 0.3 < 0.5
    assert moments["norms"][0].tolist() == [pytest.approx((0.3 + 0.375) / 2), pytest.approx(0.35)]
    assert cut(0, 0, 0.1) == [0, 0, 0.1]  # no gradient, no news of its norm
    assert moments["norms"][0].tolist() == [pytest.approx(0.3375), pytest.approx(0.225)]
    assert moments["normed"].flatten().tolist() == [4, 4] and moments["norms"][1, 1] == pytest.approx(0.1e-3 / 2 + 0.35e-3 / 2)


def test_spam_by_hand() -> None:
    clip = Spam(threshold=4, every=3, warmup=2, wait=1)
    v = torch.tensor([[1.0, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]])
    moments = {"mean": torch.ones(4, 4), "square": v, "steps": torch.tensor([[0.0], [1], [2], [3]])}
    found = clip.cut(torch.tensor([3.0, -3, 1, 9]).expand(4, 4), moments, TWO)
    # row 0 waits, row 3 begins anew; of the others sqrt(4 x 1) = 2 is the most, where there is a v
    assert found.tolist() == [[3, -3, 1, 9], [2, -2, 1, 9], [2, -2, 1, 9], [3, -3, 1, 9]]
    assert moments["steps"].flatten().tolist() == [0, 1, 2, 0]
    assert [moments[name].sum(1).tolist() for name in ("mean", "square")] == [[4, 4, 4, 0], [3, 3, 3, 0]]
    share = clip.share(moments)
    assert share is not None and share.flatten().tolist() == pytest.approx([0.01, 0.505, 1, 0.01])


def adam(clip: Any, state: Any = "keep", **settings: Any) -> Train:
    return Train(steps=2, batch=4, lr=Constant(0.05), optimizer=Adam(), state=state, clip=clip, **settings)


def after(train: Train, rounds: int = 4, **engine: Any) -> torch.Tensor:
    strategy = FedAvg(train=train, schedule=Rounds(Count(3)))
    found: torch.Tensor = run(classification([9, 4, 30, 1, 12]), strategy, rounds, **{"plan": "looped"} | engine).state["model"]
    return found


def test_clips_that_never_clip_change_no_bit() -> None:
    plain = after(adam(None))
    for clip in (AdaGc(ratio=1e30, warmup=0), AdaGc(length=1e30), Spam(threshold=1e30, warmup=0)):
        assert torch.equal(after(adam(clip)), plain)
    assert not torch.equal(after(adam(AdaGc(warmup=1))), plain)


def test_spam_that_begins_anew_with_each_job_is_adam_from_zero_in_bits() -> None:
    assert torch.equal(after(adam(Spam(threshold=1e30, every=2, warmup=0))), after(adam(None, "reset")))


def test_spam_s_steps_have_a_share_of_adam_s() -> None:
    # Adam's first step is lr against the sign of the slope: 1 % of it, and of the second (m, v of an equal slope) 50.5 %
    train = Train(steps=1, batch="all", lr=Constant(1.0), optimizer=Adam(eps=0), state="keep", clip=Spam(warmup=2))
    assert quick(quadratics([1e9]), FedAvg(train=train), 1).state["model"].item() == pytest.approx(0.01)
    assert quick(quadratics([1e9]), FedAvg(train=train), 2).state["model"].item() == pytest.approx(0.515)


@pytest.mark.parametrize("clip", [AdaGc(warmup=2, ratio=0.9), Spam(every=3, threshold=1.0, wait=1, warmup=2)], ids=lambda one: one.name)
def test_what_clips_learn_is_kept_and_the_same_in_processes_and_chunks(clip: Clip) -> None:
    whole = after(adam(clip))
    assert torch.equal(after(adam(clip), chunk=2), whole) and not torch.equal(whole, after(adam(None)))
    fed = run(classification([9, 4]), FedAvg(train=adam(clip)), 3, processes=2, plan="looped")
    fed.worker.close()
    assert torch.equal(fed.state["model"], run(classification([9, 4]), FedAvg(train=adam(clip)), 3, plan="looped").state["model"])


def test_plain_sgd_keeps_what_a_clip_learns() -> None:
    # 1/2 |w - 8|^2 from 0 with lr 1/4: the warm-up cuts 8 to 1, w = 1/4; then 1.05 x 1 is the most: 0.25 + 0.2625
    train = steps(1, 0.25, state="keep", clip=AdaGc(warmup=1))
    assert quick(quadratics([8.0]), FedAvg(train=train), 2).state["model"].item() == pytest.approx(0.5125)


SCENARIO = """
task: {data: digits, partition: {name: iid, nodes: 4}, model: logistic}
strategy: fedavg
stop: {rounds: 1}
track: none
"""


@pytest.mark.parametrize(
    ("train", "clip"),
    [
        ("{clip: 3}", Norm(3.0)),
        ("{clip: {length: 3}}", Norm(3.0)),
        ("{clip: adagc}", AdaGc()),
        ("{clip: {name: spam, every: 100}, optimizer: adamw, state: keep_8bit}", Spam(every=100)),
        ("{clip: none}", None),
    ],
)
def test_they_are_read_and_written_and_read_again(folder: Path, train: str, clip: Clip | None) -> None:
    [loaded] = load(write(folder, f"{SCENARIO}train: {train}\n"))
    [again] = load(write(folder, loaded.resolved, "again.yaml"))
    assert loaded.scenario.strategy.train.clip == clip == again.scenario.strategy.train.clip
    assert loaded.hash == again.hash and (not isinstance(clip, Norm) or "clip: 3" in loaded.resolved)


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ("{clip: -1}", "train.clip: `-1`: above 0 is due"),
        ("{clip: adagcc}", "train.clip: unknown clip `adagcc`; did you mean `adagc`?"),
        ("{clip: {name: adagc, decay: 1}}", "train.clip.decay: `1`: at least 0 and below 1 is due"),
        ("{clip: spam}", "train.clip: `spam` clips by Adam's moments: `optimizer: adam` is due, not `sgd`"),
        ("{clip: spam, optimizer: adam}", "train.clip: `spam` counts a node's steps over its jobs: `state: keep` is due"),
        ("{state: keep_8bit}", "train.state: plain sgd has nothing to keep; set `momentum`, or another `optimizer`"),
        ("{state: keep_8bit, clip: adagc}", "plain sgd has nothing to keep, and what the clip knows is not stored in 8 bits; use `keep`"),
    ],
)
def test_bad_clips_are_named(folder: Path, train: str, said: str) -> None:
    with pytest.raises(ScenarioError) as error:
        load(write(folder, f"{SCENARIO}train: {train}\n"))
    assert said in str(error.value)
