"""Random scenarios have the same bits when repeated, in other chunks, over several processes, and after a checkpoint in between."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reference import TIMES, schedules
from tools import classification, durations, federation, steps

from fedsim.codecs import Codec, Ef21, Identity, TopK
from fedsim.federation.federation import Federation
from fedsim.method.strategy import Strategy
from fedsim.run.checkpoint import collect, restore
from strategies.dsgd import Dsgd
from strategies.fedavg import FedAvg

Outcome = tuple[bytes, int, dict[str, float]]


def outcome(fed: Federation) -> Outcome:
    """All that a run leaves: the bits of its models, its clock, and its totals."""
    fed.worker.close()
    return fed.strategy.model(fed.state).numpy().tobytes(), fed.now, fed.ledger.totals()


@given(st.data())
@settings(max_examples=12, deadline=None)
def test_random_scenarios_have_one_outcome(data: st.DataObject) -> None:
    nodes = data.draw(st.integers(2, 7))
    schedule = data.draw(schedules(nodes))
    seconds = data.draw(st.lists(TIMES, min_size=nodes, max_size=nodes))
    task = classification(data.draw(st.lists(st.integers(1, 30), min_size=nodes, max_size=nodes)))
    uplink: Codec = data.draw(st.sampled_from([Identity(), Ef21(TopK(fraction=0.3))]))
    kind: type[Strategy] = Dsgd if schedule.peers else FedAvg
    strategy = kind(train=steps(data.draw(st.integers(1, 4)), 0.3, batch=data.draw(st.integers(1, 9))), schedule=schedule, uplink=uplink)
    plan = data.draw(st.sampled_from(["looped", "looped", "stacked"]))

    def begun(rounds: int, **engine: Any) -> Federation:
        return federation(task, strategy, rounds, durations(*seconds), plan=plan, **engine)

    def done(rounds: int = 4, **engine: Any) -> Federation:
        fed = begun(rounds, **engine)
        fed.run()
        return fed

    expected = outcome(done())
    assert outcome(done()) == expected
    assert outcome(done(chunk=data.draw(st.integers(1, 5)))) == expected
    assert outcome(done(processes=data.draw(st.sampled_from([2, 4])), chunk=data.draw(st.integers(1, 3)))) == expected
    half = done(data.draw(st.integers(1, 3)))
    rest = begun(4)
    restore(rest, collect(half))
    rest.run()
    assert outcome(rest) == expected
    assert torch.isfinite(rest.strategy.model(rest.state)).all()
