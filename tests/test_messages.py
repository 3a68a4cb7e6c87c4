"""The log of messages: who joins with it has the live model bit by bit; a log that is not right is refused, never a wrong model."""

import zlib
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import TASKS, call, resumed, simulate
from test_one_byte import alike
from tools import classification, durations, events, federation, models

from fedsim.base.errors import SettingError
from fedsim.codecs import Identity
from fedsim.codecs.scalar import Log8Byte, Log16NineBit, SignBit
from fedsim.federation.federation import Federation
from fedsim.federation.messages import BrokenLog, MessageLog, read
from fedsim.federation.rebuild import rebuild
from fedsim.federation.replicas import Replicas
from fedsim.method.strategy import Strategy
from fedsim.privacy.gaussian import Gaussian
from fedsim.run.building import build
from fedsim.run.folders import RunFolder
from fedsim.scenario import load
from fedsim.settings.values import Constant, PerNode
from fedsim.world import World
from fedsim.world.availability import Timetable
from fedsim.world.faults import Faults
from strategies.eggroll import Eggroll
from strategies.one_byte import OneByte
from strategies.zo_adamu import ZoAdamu

ABOUT = {"scenario": "abcd", "seed": 0}
STRATEGIES: list[Strategy] = [
    OneByte(probes=2, lr=Constant(0.3), batch=5),
    OneByte(probes=3, lr=Constant(0.3), batch=5, uplink=Log16NineBit()),
    OneByte(lr=Constant(0.3), batch=5, uplink=Identity()),
    ZoAdamu(probes=2, last=3, batch=5),
    Eggroll(population=8, batch="all", uplink=SignBit(), shaping="sign"),
    Eggroll(population=6, batch="all", shaping="zscore"),
]
TEXT = """\
task: {data: digits, partition: {name: iid, nodes: 4}, model: logistic}
strategy: {name: one_byte, probes: 2, batch: 8, lr: 0.1}
stop: {rounds: 6}
engine: {plan: looped}
track: none
"""


def messages(fed: Federation) -> MessageLog:
    found = fed.companion(Replicas)
    assert found
    return found.log


def moving(strategy: Strategy) -> Federation:
    """Machine 3 joins after round 3, machine 0 leaves after round 6, three of ten jobs crash."""
    table = Timetable(joins={"3": Fraction(5, 2)}, leaves={"0": Fraction(11, 2)})
    world = World(compute=durations(1, 1, 1, 1).compute, availability=table, faults=Faults(crash=PerNode(0.3)))
    fed = federation(alike(4), strategy, 9, world, plan="looped")
    messages(fed).open(ABOUT)
    fed.run()
    return fed


def log_of(fed: Federation) -> bytes:
    return bytes(messages(fed).waiting)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda one: f"{one.name}-{one.uplink.name}")
def test_who_joins_with_the_log_has_the_live_state_bit_by_bit(strategy: Strategy) -> None:
    fed = moving(strategy)
    senders = [(merge == events(fed, "merge")["version"]).sum() for merge in range(1, 10)]
    assert len(set(senders)) > 1, "machines come, go and crash"
    joiner = federation(alike(4), strategy, plan="looped")
    assert rebuild(joiner, log_of(fed), ABOUT) == 9
    assert list(joiner.state) == list(fed.state)
    assert all(torch.equal(joiner.state[name], rows) for name, rows in fed.state.items())
    assert not torch.equal(models(fed)[0], models(fed)[-1])


def test_an_observer_takes_in_round_by_round_and_after_weights_only_what_it_lacks() -> None:
    strategy = STRATEGIES[0]
    fed = moving(strategy)
    live = models(fed)
    for version in (0, 4, 8):
        joiner = federation(alike(4), strategy, plan="looped")
        joiner.state, joiner.version = {"model": live[version].clone()}, version  # joined by weights then
        assert rebuild(joiner, log_of(fed), ABOUT) == 9 - version
        assert torch.equal(joiner.state["model"], live[9])


def test_the_log_has_the_bytes_that_were_sent() -> None:
    fed = federation(alike(3), OneByte(probes=5, batch=3), 4, plan="looped")
    messages(fed).open(ABOUT)
    fed.run()
    records = list(read(log_of(fed), 5)[1])
    assert [record.node.tolist() for record in records] == [[0, 1, 2]] * 4
    assert sum(len(record.payload) for record in records) == fed.ledger.bytes_up == 4 * 3 * 5
    assert [record.job.tolist() for record in records] == [[3 * n, 3 * n + 1, 3 * n + 2] for n in range(4)]
    assert events(fed, "merge")["job"].tolist() == [job for record in records for job in record.job]


def raw() -> tuple[bytes, list[int]]:
    """A log of six rounds, and where its records begin."""
    fed = federation(alike(3), STRATEGIES[0], 6, plan="looped")
    messages(fed).open(ABOUT)
    ends = [len(log_of(fed))]
    fed.watch.running = lambda of: (ends.append(len(log_of(of))), of.round < 6)[1]  # type: ignore[method-assign, func-returns-value]
    fed.run()
    return log_of(fed), ends[1:]


def altered(log: bytes, starts: list[int]) -> dict[str, bytes]:
    """Logs that nobody may join with."""
    one = starts[2] + 12 + 3 * 12  # the first byte of a message of the third round
    flipped = log[:one] + bytes([log[one] ^ 1]) + log[one + 1 :]
    forged, check = bytearray(flipped), zlib.crc32(log[: starts[0] - 4])
    for begin, end in pairwise(starts):  # with checksums that are right again
        check = zlib.crc32(forged[begin : end - 4], check)
        forged[end - 4 : end] = check.to_bytes(4, "little")
    return {
        "its record 3, or one before it, was changed": flipped,
        "round 3: its messages lead to another state": bytes(forged),
        "its record 4, or one before it, was changed or is missing": log[: starts[3]] + log[starts[4] :],
        "its record 6 is cut short": log[:-1],
        "its record 5 is cut short": log[: starts[4] + 7],
        "its head is cut short": log[:20],
        "it does not begin as a log of messages": b"PAR1" + log[4:],
    }


@pytest.mark.parametrize("which", range(7))
def test_a_log_that_is_not_whole_is_refused(which: int) -> None:
    message, broken = list(altered(*raw()).items())[which]
    with pytest.raises(BrokenLog, match=message):
        rebuild(federation(alike(3), STRATEGIES[0], plan="looped"), broken, ABOUT)


def test_a_log_of_another_run_is_refused() -> None:
    log, _ = raw()
    with pytest.raises(BrokenLog, match="it is another run's: seed is 0, not 1"):
        rebuild(federation(alike(3), STRATEGIES[0], plan="looped", seed=1), log, ABOUT | {"seed": 1})
    for other in (
        OneByte(probes=2, lr=Constant(0.2), batch=5),
        replace(STRATEGIES[0], normalise="sqrt"),
    ):  # as if nobody had looked at the head
        with pytest.raises(BrokenLog, match="round 1: its messages lead to another state"):
            rebuild(federation(alike(3), other, plan="looped"), log, ABOUT)
    with pytest.raises(BrokenLog, match="round 1: its messages lead to another state"):
        rebuild(federation(classification([12, 12, 12], seed=1), STRATEGIES[0], plan="looped"), log, ABOUT)


def test_a_round_that_is_missing_is_named() -> None:
    joiner, log = federation(alike(3), STRATEGIES[0], plan="looped"), MessageLog(Log8Byte())
    log.open(ABOUT)
    log.add(1, np.arange(3), np.arange(3), {"slopes": torch.ones(3, 2)}, joiner.state)
    with pytest.raises(BrokenLog, match="it goes on with round 2; round 1 is missing"):
        rebuild(joiner, bytes(log.waiting), ABOUT)


# Run folders


def test_a_run_is_rebuilt_from_its_log(folder: Path) -> None:
    run = simulate(folder, text=TEXT)
    result = call("replay", run.path, "--log")
    assert result.exit_code == 0, result.output
    size = (run.path / "messages.log").stat().st_size
    assert result.stdout.splitlines()[1] == f"  rebuilt: model {run.info['model'][:8]} from 6 rounds of messages, {size} B"


def refusal(run: RunFolder) -> str:
    result = call("replay", run.path, "--log")
    assert result.exit_code == 2 and not result.stdout
    return result.stderr


def test_a_wrong_log_in_a_runs_folder_is_one_error(folder: Path) -> None:
    run, other = simulate(folder, text=TEXT), simulate(folder, "seed=1", text=TEXT, into="other")
    file = run.path / "messages.log"
    log = file.read_bytes()
    file.write_bytes((other.path / "messages.log").read_bytes())
    assert "messages.log: it is another run's: " in refusal(run)
    file.write_bytes(log[:-20])
    assert "messages.log: its record 6 is cut short" in refusal(run)
    last = len(log) - (len(log) - log.index(b"}") - 5) // 6
    file.write_bytes(log[:last])
    assert "messages.log: it ends after round 5, with another model than the run did" in refusal(run)
    file.unlink()
    assert "messages.log can't be read: No such file" in refusal(run)
    plain = simulate(folder, "strategy=fedavg", text=TEXT, into="plain")
    assert "`fedavg` has no replicas" in refusal(plain)


def test_a_run_that_goes_on_from_a_checkpoint_has_the_same_log(folder: Path) -> None:
    whole = simulate(folder, text=TEXT).path / "messages.log"
    [loaded] = load(folder / "small.yaml", ["checkpoint={every: 2 rounds}"])
    run = build(loaded, TASKS)
    run.open(folder / "cut")
    run.stop = replace(run.stop, rounds=5)
    run.fed.run()
    run.fed.flush()  # and then it is killed: the log has a round more than the last checkpoint
    assert run.writer
    run.writer.release()
    again = resumed(folder / "cut")
    assert (again.path / "messages.log").read_bytes() == whole.read_bytes()


def test_noise_of_a_server_has_no_place_among_replicas() -> None:
    with pytest.raises(SettingError, match="privacy: a server adds its noise"):
        federation(alike(2), OneByte(privacy=Gaussian(clip=1.0, noise=1.0)), 1)


def test_uplink_codes_are_the_same_again() -> None:
    numbers = torch.tensor([[0.0, -3.3, 1e9, 1e-9, 0.7]])
    for codec in (Log8Byte(), Log16NineBit(), SignBit()):
        key = torch.zeros(1, dtype=torch.int64)
        wire = codec.encode({"p": numbers}, {}, key)
        again = codec.encode(codec.decode(wire, {}, key)[0], {}, key)
        assert all(torch.equal(again[name], rows) for name, rows in wire.items())
