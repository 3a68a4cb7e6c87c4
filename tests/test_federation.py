"""The federation's clock and verbs, by hand."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from tools import classification, durations, events, federation, quadratics, run, steps

from fedsim.base.errors import RunError, SettingError
from fedsim.codecs import pack
from fedsim.method.strategy import Strategy
from fedsim.run.stops import by_name
from fedsim.scenario.settings import Stop
from fedsim.schedule import Buffered, Gossip, Pairwise, Rounds, Ticks
from fedsim.settings.values import Count, PerNode
from fedsim.world import Bernoulli, Compute, Faults, Network, World
from strategies.dsgd import Dsgd
from strategies.fedasync import FedAsync
from strategies.fedavg import FedAvg
from strategies.fedbuff import FedBuff
from strategies.fedfix import FedFix
from strategies.fedstale import FedStale

ALL = Count()


def times(fed, kind):  # type: ignore[no-untyped-def]
    table = events(fed, kind)
    return list(zip(table["time"].tolist(), table["node"].tolist(), strict=True))


def test_a_round_lasts_as_long_as_its_slowest() -> None:
    fed = run(quadratics([0.0, 1.0, 2.0]), FedAvg(train=steps(), schedule=Rounds(ALL)), 2, durations(1, 3, 2))
    assert times(fed, "arrival") == [(1, 0), (2, 2), (3, 1), (4, 0), (5, 2), (6, 1)]
    assert times(fed, "merge") == [(3, 0), (3, 1), (3, 2), (6, 0), (6, 1), (6, 2)]


def test_arrival_is_dispatch_latency_bytes_work_latency_bytes() -> None:
    world = World(
        Compute(step=PerNode(Fraction(1, 10))), Network(PerNode(Fraction(1000)), PerNode(Fraction(4000)), PerNode(Fraction(1, 20)))
    )
    fed = run(quadratics([0.0, 1.0]), FedAvg(train=steps(3), schedule=Rounds(ALL)), 1, world)
    size = fed.down_bytes
    assert size == len(pack({"model": torch.zeros(1, dtype=torch.float64)}))
    expected = 0.05 + size / 4000 + 0.3 + 0.05 + fed.flight.up_bytes / 1000
    assert times(fed, "arrival") == [(pytest.approx(expected, abs=1e-9), 0), (pytest.approx(expected, abs=1e-9), 1)]


def test_over_selection_waits_for_the_fastest_and_cancels_the_rest() -> None:
    fed = run(quadratics([0.0, 1.0, 2.0]), FedAvg(train=steps(), schedule=Rounds(ALL, wait_for=2)), 2, durations(1, 3, 2))
    assert times(fed, "merge") == [(2, 0), (2, 2), (4, 0), (4, 2)]
    assert times(fed, "drop") == [(2, 1), (4, 1)]
    assert fed.worker.steps_done == 4  # what is cancelled is never computed
    assert fed.ledger.dropped == 2


def test_an_arrival_exactly_at_the_deadline_is_in_time() -> None:
    fed = run(quadratics([0.0, 1.0, 2.0]), FedAvg(train=steps(), schedule=Rounds(ALL, deadline=Fraction(2))), 1, durations(1, 3, 2))
    assert times(fed, "merge") == [(2, 0), (2, 2)]


def test_late_updates_join_the_next_merge_with_their_age() -> None:
    # node 1 needs 3 s, the deadline is 2 s: its update of round 1 arrives at 3 and joins the merge at 4, one merge old
    schedule = Rounds(ALL, deadline=Fraction(2), late="keep")
    fed = run(quadratics([0.0, 1.0, 2.0]), FedAvg(train=steps(), schedule=schedule), 2, durations(1, 3, 2))
    merged = events(fed, "merge")
    assert merged["time"].tolist() == [2, 2, 4, 4, 4]
    assert merged["node"].tolist() == [0, 2, 0, 1, 2]
    assert merged["staleness"].tolist() == [0, 0, 0, 1, 0]
    assert fed.ledger.dropped == 0


def test_late_updates_do_not_count_towards_wait_for() -> None:
    schedule = Rounds(ALL, wait_for=1, late="keep")
    fed = run(quadratics([0.0, 1.0]), FedAvg(train=steps(), schedule=schedule), 3, durations(2, 3))
    # round 1 ends at 2 with node 0; round 2 asks node 0 again: node 1's old job arrives at 3 and waits for node 0 at 4; round 3 asks both
    assert times(fed, "merge") == [(2, 0), (4, 0), (4, 1), (6, 0)]


def test_equal_times_are_ordered_by_node_and_ticks_come_after_arrivals() -> None:
    fed = run(quadratics([0.0, 1.0, 2.0]), FedAvg(train=steps(), schedule=Ticks(Fraction(1, 5))), 3, durations("2/5", "1/5", "1/5"))
    assert events(fed, "arrival")["node"].tolist() == [1, 2, 0, 1, 2, 1, 2]
    assert times(fed, "merge") == [(0.2, 1), (0.2, 2), (0.4, 0), (0.4, 1), (0.4, 2), (pytest.approx(0.6), 1), (pytest.approx(0.6), 2)]


def test_thirds_of_a_second_stay_exact() -> None:
    fed = run(quadratics([0.0]), FedAvg(train=steps(), schedule=Ticks(Fraction(1, 3))), 300, durations("1/3"))
    assert fed.now == 100 * fed.nature.per_second
    assert fed.ledger.updates == 300


def test_the_run_ends_at_its_time_and_what_arrived_stays() -> None:
    fed = federation(
        quadratics([0.0, 1.0]), FedBuff(train=steps(), schedule=Buffered(2, restart="merge")), None, durations(2, 3), seconds="5/2"
    )
    fed.run()
    assert fed.now == fed.ticks(Fraction(5, 2))
    assert fed.version == 0  # one of the two that a merge needs
    assert fed.waiting.node.tolist() == [0]
    fed.watch.end = fed.ticks(Fraction(100))
    fed.watch.rounds = 1  # type: ignore[attr-defined]
    fed.run()
    assert times(fed, "merge") == [(3, 0), (3, 1)]


def test_a_crash_ends_within_the_work_and_a_loss_at_the_arrival() -> None:
    faults = Faults(crash=PerNode((1.0, 0.0, 0.0)), lost=PerNode((0.0, 1.0, 0.0)))
    world = World(Compute(job=PerNode(Fraction(4))), faults=faults)
    fed = run(quadratics([0.0, 1.0, 2.0]), FedAvg(train=steps(), schedule=Rounds(ALL)), 1, world)
    dropped = {node: time for time, node in times(fed, "drop")}
    assert 0 <= dropped[0] < 4
    assert dropped[1] == 4
    assert times(fed, "merge") == [(4, 2)]
    bytes_up = events(fed, "drop")["bytes_up"]
    assert sorted(bytes_up.tolist()) == [0, fed.flight.up_bytes]  # the lost one travelled


def test_memories_are_written_at_arrival_only() -> None:
    from dataclasses import dataclass

    from fedsim.base.rows import Rows
    from fedsim.method.local import Local

    @dataclass(frozen=True)
    class Counting(FedAvg):
        def start_local(self, x: torch.Tensor) -> Rows:
            return {"jobs": x.new_zeros(len(x), 1)}

        def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
            return {"update": 0 * received["model"]}, {"jobs": memory["jobs"] + 1}

    strategy = Counting(train=steps(), schedule=Rounds(ALL, wait_for=2))
    fed = run(quadratics([0.0, 1.0, 2.0]), strategy, 5, durations(1, 3, 2))
    assert fed.flight.turn.tolist() == [5, 5, 5]
    jobs = fed.flight.memory.get(np.arange(3), lambda new: {"jobs": torch.zeros(len(new), 1, dtype=torch.float64)})["jobs"]
    assert jobs[:, 0].tolist() == [5, 0, 5]  # node 1 was always cut


def test_work_is_computed_late_and_nothing_is_trained_that_is_not_wanted() -> None:
    task = quadratics(np.zeros(50))
    seconds = [Fraction(1) + Fraction(i, 10) for i in range(50)]
    fed = run(task, FedBuff(train=steps(), schedule=Buffered(5)), 40, durations(*seconds), chunk=10)
    assert fed.ledger.updates == 200
    assert 200 <= fed.worker.steps_done <= 210


def test_peers_send_models_to_their_neighbours_only() -> None:
    world = World(Compute(job=PerNode(Fraction(1))), Network(PerNode(Fraction(1000)), PerNode(Fraction(1000)), PerNode(Fraction(1, 10))))
    fed = run(quadratics([0.0, 1.0, 2.0, 3.0]), Dsgd(train=steps(), schedule=Gossip()), 1, world)
    size = fed.flight.peer_bytes
    assert fed.ledger.totals()["traffic/bytes_cross"] == 4 * 2 * size
    assert fed.ledger.bytes_up == fed.ledger.bytes_down == 0
    assert fed.now / fed.nature.per_second == pytest.approx(1 + 0.1 + 2 * 2 * size / 1000, abs=1e-6)


def test_pairs_count_rounds_in_n_merges() -> None:
    fed = run(quadratics([0.0, 1.0, 2.0]), Dsgd(train=steps(), schedule=Pairwise()), 2, durations(1, "3/2", 2))
    assert (fed.round, fed.version) == (2, 6)


def test_an_empty_round_counts_and_moves_no_model() -> None:
    task = quadratics([5.0, 5.0])
    world = World(availability=Bernoulli(PerNode(0.3)))
    fed = run(task, FedAvg(train=steps(), schedule=Rounds(ALL)), 40, world)
    empty = events(fed, "merge")["node"] == -1
    assert fed.version == 40
    assert 0 < empty.sum() < 40


def test_a_world_without_anybody_is_an_error_and_not_an_endless_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.federation.health.PATIENCE", 50)
    world = World(Compute(job=PerNode(Fraction(1))), availability=Bernoulli(PerNode(0.0)))
    with pytest.raises(RunError, match="nobody was there in 50 rounds"):
        run(quadratics([1.0]), FedAvg(train=steps()), None, world, seconds=9)


def test_asynchronous_schedules_need_a_world_that_takes_time() -> None:
    with pytest.raises(SettingError, match="take no time"):
        federation(quadratics([1.0, 2.0]), FedBuff(train=steps(), schedule=Buffered(1)), 1)


def test_a_diverging_run_names_round_and_clients() -> None:
    with pytest.raises(RunError, match=r"diverged in round \d+: .* clients 0, 1"):
        run(quadratics([1.0, 2.0], 1e30), FedAvg(train=steps(5, lr=1e10), schedule=Rounds(ALL)), 50)


def test_who_works_and_on_what_does_not_depend_on_the_method() -> None:
    task = classification([5] * 30)
    one, two = (run(task, strategy, 5) for strategy in (FedAvg(schedule=Rounds(Count(7))), FedBuff(schedule=Rounds(Count(7)))))
    assert events(one, "dispatch")["node"].tolist() == events(two, "dispatch")["node"].tolist()


def test_a_deadline_is_waited_for_when_somebody_does_not_come() -> None:
    faults = Faults(lost=PerNode((1.0, 0.0)))
    world = World(Compute(job=PerNode(Fraction(1))), faults=faults)
    fed = run(quadratics([0.0, 1.0]), FedAvg(train=steps(), schedule=Rounds(ALL, deadline=Fraction(10))), 2, world)
    assert times(fed, "merge") == [(10, 1), (20, 1)]  # the server can't know that a lost update won't come


def test_empty_rounds_between_others_do_not_end_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.federation.health.PATIENCE", 20)
    fed = run(quadratics([1.0] * 4), FedAvg(train=steps(), schedule=Rounds(ALL)), 400, World(availability=Bernoulli(PerNode(0.3))))
    assert (events(fed, "merge")["node"] == -1).sum() > 20
    assert fed.version == 400


@pytest.mark.parametrize("strategy", [FedBuff, FedAsync, FedFix, FedStale])
def test_methods_of_a_server_are_refused_among_peers(strategy: type[Strategy]) -> None:
    with pytest.raises(SettingError, match="merges at a server"):
        federation(quadratics([1.0, 2.0]), strategy(train=steps(), schedule=Gossip()), 1)


def test_peers_that_are_away_neither_send_nor_hear() -> None:
    # node 1 crashes always: the ring of three becomes the pair (0, 2), each with 2/3 of itself and 1/3 of the other
    world = World(Compute(job=PerNode(Fraction(1))), faults=Faults(crash=PerNode((0.0, 1.0, 0.0))))
    fed = run(quadratics([3.0, 5.0, 9.0]), Dsgd(train=steps(1, lr=1.0), schedule=Gossip()), 1, world)
    assert fed.state["model"][:, 0].tolist() == pytest.approx([5.0, 0.0, 7.0])
    assert fed.ledger.totals()["traffic/bytes_cross"] == 2 * fed.flight.peer_bytes


def test_chances_are_unknown_where_faults_change_the_odds() -> None:
    world = World(faults=Faults(crash=PerNode(0.5)))
    with pytest.raises(SettingError, match="no known probability"):
        federation(quadratics([1.0, 2.0]), FedStale(train=steps()), 1, world)


def test_the_clock_says_when_it_runs_out() -> None:
    # ticks of 1/1777 ns count to about 30 days, 26 jobs of 100,000 s
    world = durations(*[Fraction(10**5 * 1777 + i, 1777) for i in range(3)])
    with pytest.raises(RunError, match="the clock ran out"):
        run(quadratics([1.0, 2.0, 3.0]), FedAvg(train=steps(), schedule=Rounds(ALL)), 10**5, world)


@pytest.mark.parametrize("schedule", [Buffered(2, Count(3)), Ticks(Fraction(1, 2))])
def test_a_run_that_is_lengthened_equals_the_longer_run(schedule: Buffered | Ticks) -> None:
    task, world = classification([3, 9, 4, 7]), durations(1, "3/2", 2, "2/3")
    strategy = FedAvg(train=steps(2, 0.3), schedule=schedule)
    whole = run(task, strategy, None, world, seconds=20)
    fed = run(task, strategy, None, world, seconds="51/10")
    fed.watch.end = fed.now * 200 // 51
    assert fed.now * whole.nature.per_second == whole.ticks(Fraction(51, 10)) * fed.nature.per_second
    fed.run()
    assert torch.equal(fed.state["model"], whole.state["model"])
    assert fed.ledger.totals() == whole.ledger.totals()


def test_a_node_named_twice_is_not_sent_twice():
    fed = federation(quadratics([4.0, 8.0]), FedAvg(train=steps(1, 1.0), schedule=Rounds(Count())), 1, plan="looped")
    with pytest.raises(AssertionError, match="named twice"):
        fed.send(np.array([0, 0]))


def test_what_ended_without_a_stop_is_the_schedule():
    assert by_name("seconds", Stop()) == "its schedule's own end"
    assert by_name("rounds", Stop(rounds=3)) == "3 rounds"
