"""EF14 and EF21 as codecs, worked out by hand; what does not fit is refused; and codecs in whole runs."""

from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import torch
from launch import refused
from tools import classification, durations, models, quadratics, quick, run, steps

from fedsim.base.errors import RunError
from fedsim.base.keys import fold, normal
from fedsim.codecs import Blocks8, Chain, Codec, CountSketch, Ef14, Ef21, Float16, PowerSgd, Qsgd, RandK, Sign, Srht, TopK, row_bytes
from fedsim.method.strategy import Strategy
from fedsim.schedule import Buffered, Gossip, Rounds
from fedsim.settings.values import Count
from strategies.choco import Choco
from strategies.dsgd import Dsgd
from strategies.fedavg import FedAvg
from strategies.fedbuff import FedBuff
from strategies.fedspeed import FedSpeed

KEY = torch.zeros(1, dtype=torch.int64)


def test_ef14_sends_later_what_it_left_out() -> None:
    """Top-1 of x + e with e = x + e - sent: (3, 2) sends 3, then 2 + 2 = 4 of (3, 4), then 3 + 3 = 6 of (6, 2)."""
    codec, x = Ef14(TopK(count=1)), {"x": torch.tensor([[3.0, 2.0]])}
    memory, sent = codec.init(x), []
    for _ in range(3):
        came, memory = codec.carry(x, memory, KEY)
        sent.append(came["x"].tolist()[0])
    assert sent == [[3.0, 0.0], [0.0, 4.0], [6.0, 0.0]]
    assert memory["error x"].tolist() == [[0.0, 2.0]]


@pytest.mark.parametrize("inner", [Sign(), TopK(count=3), RandK(count=5), Qsgd(levels=1), Blocks8()], ids=repr)
def test_what_ef14_sends_adds_up(inner: Codec) -> None:
    """All that was to be sent has arrived, but for |e|^2 <= 4 (1 - alpha) / alpha^2 |x|^2 in the mean (Karimireddy et al., Lemma 3)."""
    codec, total = Ef14(inner), torch.zeros(2, 20)
    x = {"x": normal(fold(3, torch.arange(2)), 20)}
    memory, lengths = codec.init(x), []
    for turn in range(300):
        came, memory = codec.carry(x, memory, fold(turn, torch.arange(2)))
        total += came["x"]
        lengths.append(float(memory["error x"].square().sum()))
    assert torch.allclose(total + memory["error x"], 300 * x["x"], atol=1e-2)
    alpha = inner.alpha(20) or inner.shortening(20)
    assert mean(lengths) <= 4 * (1 - alpha) / alpha**2 * float(x["x"].square().sum())


@pytest.mark.parametrize(
    "inner", [Sign(), RandK(count=5), Qsgd(levels=1), CountSketch(count=5), Srht(count=5), Chain((TopK(count=9), Qsgd(levels=1)))], ids=repr
)
def test_the_estimate_of_ef21_comes_to_what_stays(inner: Codec) -> None:
    """Also around codecs that are right in the mean with a variance above 1, whose changes are shortened by 1 + omega."""
    codec, x = Ef21(inner), {"x": normal(fold(3, torch.arange(2)), 20)}
    memory = codec.init(x)
    for turn in range(400):
        came, memory = codec.carry(x, memory, fold(turn, torch.arange(2)))
    assert (came["x"] - x["x"]).norm() < 1e-3 * x["x"].norm()


def test_changes_are_shortened_by_what_makes_them_contract() -> None:
    assert [RandK(count=5).shortening(20), Qsgd(levels=1, bucket=16).shortening(20), TopK().shortening(20)] == [1 / 4, 1 / 5, 1]
    assert Chain((TopK(count=16), Qsgd(levels=1))).shortening(20) == 1 / 5
    assert Chain((RandK(count=5), Qsgd(levels=1, bucket=4))).omega(20) == pytest.approx(4 * 3 - 1)
    assert Chain((TopK(count=10), Float16())).alpha(20) is None
    with pytest.raises(ValueError, match="the same things each time"):
        Ef21(Srht(fresh=False))
    with pytest.raises(ValueError, match="`ef14` remembers, and does not stand in a chain"):
        Chain((Ef14(Sign()), Float16()))
    with pytest.raises(ValueError, match="`parts` is empty"):
        Chain(())


def test_error_feedback_up_reaches_what_signs_alone_do_not() -> None:
    """Three nodes with unlike steepness: EF14 ends near the optimum, 2 and -1; signs alone end elsewhere."""
    task = quadratics([[8.0, 1.0], [-3.5, 2.0], [1.5, -6.0]])
    ends = [
        run(task, FedAvg(train=steps(1, 0.05), schedule=Rounds(cohort=Count()), uplink=codec), 400).state["model"][0]
        for codec in (Sign(), Ef14(Sign()))
    ]
    away = [float((end - torch.tensor([2.0, -1.0])).norm()) for end in ends]
    assert away[1] < 0.2 and away[0] > 3 * away[1]


# Whole runs

TRAIN, WORLD = steps(2, 0.2, batch=4), durations(1, "1.3", "1.7", "2.9", "0.6")
COMBINED: dict[str, Strategy] = {
    "fedavg and ef21 of topk": FedAvg(train=TRAIN, schedule=Rounds(cohort=Count(3)), uplink=Ef21(TopK(fraction=0.2))),
    "fedbuff and qsgd": FedBuff(train=TRAIN, schedule=Buffered(2, Count(3)), uplink=Qsgd(bucket=8), downlink=Float16()),
    "dsgd and blocks8": Dsgd(train=TRAIN, crosslink=Blocks8()),
    "fedspeed and countsketch": FedSpeed(train=TRAIN, schedule=Rounds(cohort=Count(3)), uplink=CountSketch(fraction=0.5)),
    "choco and ef21 of low rank": Choco(train=TRAIN, crosslink=Ef21(PowerSgd(rank=1))),
    "choco and ef21 of qsgd": Choco(train=TRAIN, schedule=Gossip(), crosslink=Ef21(Qsgd(bucket=8))),
    "ef14 both ways": FedAvg(train=TRAIN, schedule=Rounds(cohort=Count(3)), uplink=Ef14(Sign()), downlink=Ef14(Sign())),
}


@pytest.mark.parametrize("strategy", COMBINED.values(), ids=COMBINED.keys())
def test_runs_do_not_depend_on_what_is_computed_together(strategy: Strategy) -> None:
    task = classification([4, 9, 6, 5, 8])
    one, other = (quick(task, strategy, 4, world=WORLD, chunk=chunk) for chunk in (1, 5))
    assert torch.equal(models(one), models(other)) and one.state["model"].isfinite().all()
    assert one.ledger.totals() == other.ledger.totals()
    plain = quick(task, type(strategy)(train=TRAIN, schedule=strategy.schedule, crosslink=Blocks8()), 4, world=WORLD)
    assert type(strategy) is Dsgd or not torch.equal(models(one), models(plain))


def test_bytes_of_a_run_are_those_of_the_codec() -> None:
    fed = quick(classification([4, 9, 6, 5, 8]), COMBINED["fedbuff and qsgd"], 4, world=WORLD)
    x, key = {"update": fed.state["model"]}, KEY
    assert fed.ledger.bytes_up == 8 * row_bytes(Qsgd(bucket=8).encode(x, {}, key))
    assert fed.ledger.bytes_down % row_bytes(Float16().encode({"model": fed.state["model"]}, {}, key)) == 0


# Bad input


@pytest.mark.parametrize("codec", [Blocks8(), Qsgd(), Srht(), Sign(), TopK()], ids=repr)
def test_a_run_ends_with_the_name_of_who_sends_what_is_not_finite(codec: Codec) -> None:
    task = classification([4, 5, 6])
    x = task.inputs.clone()
    x[5] = torch.nan  # the second sample of node 1
    strategy = FedAvg(train=steps(), schedule=Rounds(cohort=Count()), uplink=codec)
    with pytest.raises(RunError, match=r"diverged in round 1: .* after the updates of clients 1;"):
        quick(replace(task, inputs=x), strategy, 3)


SCENARIO = """task: {data: digits, partition: {name: iid, nodes: 4}, model: logistic}
stop: {rounds: 1}
"""
REFUSED = {
    "uplink: {name: topk, count: 1000}": "4:9: uplink: `count: 1000` of a part of 650 numbers",
    "uplink: {name: ef21, inner: {name: srht, count: 651}}": "4:9: uplink: `count: 651` of a part of 650 numbers",
    "downlink: {name: randk, count: 700}": "4:11: downlink: `count: 700` of a part of 650 numbers",
    "uplink: {name: powersgd, rank: 11}": "4:9: uplink: `rank: 11` of matrices whose shorter side is 10 at most, in a part of 650 numbers",
    "strategy: dsgd\ncrosslink: {name: countsketch, count: 651}": "4:12: crosslink: `count: 651` of a part of 650 numbers",
    "uplink: {name: qsgd, levels: 0}": "uplink.levels",
    "uplink: {name: qsgd, bucket: 0}": "uplink.bucket",
    "uplink: {name: blocks8, block: 5000}": "uplink.block",
    "uplink: {name: uniform, bits: 3}": "uplink.bits",
    "uplink: {name: ef14, inner: {name: ams, fresh: false}}": "the same things each time",
    "uplink: {name: countsketsch}": "did you mean `countsketch`",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_has_no_meaning_is_refused_before_anything_starts(line: str, folder: Path) -> None:
    strategy = "" if "strategy" in line else "strategy: fedavg\n"
    (folder / "bad.yaml").write_text(SCENARIO + strategy + line + "\n")
    assert REFUSED[line] in refused("run", "bad.yaml")
