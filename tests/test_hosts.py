"""Nodes that share a machine: stacks, links and the server's time by hand, and what it reduces to."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launch import refused, resumed, simulate, write
from launch import same as same_run
from tools import events, federation, quadratics, same, steps
from tools import quick as run

from fedsim.base.errors import SettingError
from fedsim.federation.federation import Federation
from fedsim.report.checks import check_events
from fedsim.schedule import Buffered, Gossip, Rounds, Ticks
from fedsim.settings.choice import Choice
from fedsim.settings.spans import covering
from fedsim.settings.values import Count, PerNode, Population
from fedsim.world import Compute, Energy, Faults, Hosts, Independent, Network, World
from fedsim.world.compute import LogNormalJitter
from strategies.dsgd import Dsgd
from strategies.fedavg import FedAvg

ALL = Rounds(cohort=Count())
SIZE = 80  # bytes of a message, either way


def on(*machines: Any, **settings: Any) -> Hosts:
    """Machines of so many nodes each, in order; or of these choices."""
    at = np.cumsum([0, *(one for one in machines if isinstance(one, int))])
    ranges = iter(Choice(ids=range(first, last)) for first, last in zip(at[:-1].tolist(), at[1:].tolist(), strict=True))
    return Hosts(nodes=tuple(next(ranges) if isinstance(one, int) else one for one in machines), **settings)


def parts(fed: Federation) -> list[list[float]]:
    """Of each job in order: when it arrived, and its parts, in seconds."""
    ends = events(fed, "arrival", "drop")
    order = np.argsort(ends["job"])
    return np.stack([ends[name][order] for name in ("time", "down", "work", "up")], 1).round(9).tolist()


def good(fed: Federation) -> None:
    fed.ledger.add("evaluate", time=fed.now, version=fed.version)
    for check in check_events(fed.ledger.columns(), {"final": fed.ledger.totals()}):
        assert check.ok, check


def test_a_stack_takes_its_start_its_longest_and_the_sum_of_the_rest() -> None:
    """Three nodes of 1, 2, 4 samples, two steps each: 0.5 + 2 x 3 + 3 x 0.25 + 0.125 x 2 x 7 = 9 s; 80 bytes there at 40 a second once,
    three times 80 back at 80: 0.1 + 2 + 9 + 3 + 0.1. The node with a machine of its own: 2.1 + (0.5 + 6 + 0.25 + 0.25) + 1.1."""
    world = World(
        Compute(job=same("0.25"), step=same(3), sample=same("0.125")),
        Network(same(80), same(40), same("0.1")),
        hosts=on(3, 1, stack=same("0.5"), merge=Fraction(1, 4)),
    )
    task = quadratics([1.0, 2.0, 3.0, 4.0], samples=[1, 2, 4, 1])
    fed = run(task, FedAvg(train=steps(2), schedule=ALL), 2, world)
    first = [[14.2, 2.1, 9.0, 3.1]] * 3 + [[10.2, 2.1, 7.0, 1.1]]
    assert parts(fed) == [*first, *([round(time + 14.45, 9), *rest] for time, *rest in first)]
    assert fed.ledger.bytes_down == fed.ledger.bytes_up == 8 * SIZE  # billed by node, however they travel
    good(fed)


def test_who_comes_while_a_machine_works_is_taken_together_when_it_is_done() -> None:
    """One machine, three jobs of 2 s at a time, and 1 s a stack; each reply (no way to travel) sends its node off again, so nodes 0..2
    come back at 7 s, all together, and so again. With stacks of two, 0 and 1 are back at 5 s; 2, which waited, goes with 0 until 10 s."""
    schedule = Buffered(1, Count())
    for together, ends in ((None, [7, 7, 7, 14, 14, 14]), (2, [5, 5, 10, 10, 15, 15])):
        hosts = on(3, stack=same(1), together=together)
        fed = run(quadratics([1.0, 2.0, 3.0]), FedAvg(train=steps(), schedule=schedule), 6, World(Compute(job=same(2)), hosts=hosts))
        assert [time for time, *_ in parts(fed)] == ends, together
        good(fed)


def test_a_link_carries_one_message_after_the_other() -> None:
    """Stacks of one, 1 s each, replies of 4 s: the second is computed meanwhile and waits for the link, so ends are 5 and 9 s. One model
    for both: 2 s of 80 bytes at 40 a second; for who hears it again, nothing."""
    world = World(Compute(job=same(1)), Network(up=same(20), down=same(40)), hosts=on(2, together=1))
    fed = run(quadratics([1.0, 2.0]), FedAvg(train=steps(), schedule=ALL), 1, world)
    assert parts(fed) == [[7.0, 2.0, 1.0, 4.0], [11.0, 3.0, 1.0, 7.0]]
    fed = run(quadratics([1.0, 2.0]), FedAvg(train=steps(), schedule=Buffered(2, Count(1))), 1, world)
    assert sorted(row[1] for row in parts(fed)) == [0.0, 2.0]  # the same version: it is there


def test_the_server_hears_and_sends_after_it_has_merged() -> None:
    """Jobs of 1 and 1.25 s, a merge of 0.5 s each: the first is merged from 1 to 1.5 s, when the second is heard, merged until 2 s."""
    world = World(Compute(job=PerNode((Fraction(1), Fraction(5, 4)))), hosts=on(1, 1, merge=Fraction(1, 2)))
    fed = run(quadratics([1.0, 2.0]), FedAvg(train=steps(), schedule=Buffered(1, Count())), 4, world)
    assert events(fed, "merge")["time"].tolist() == [1.0, 1.5, 2.5, 3.25]
    good(fed)


@pytest.mark.parametrize("schedule", [ALL, Rounds(Count(), wait_for=3, late="keep"), Buffered(2, Count()), Ticks(Fraction(2))])
def test_machines_of_one_node_are_nodes(schedule: Any) -> None:
    """The same times as without machines, jitter and losses included, where none hears a model twice and none is told to stop."""
    job = PerNode(tuple(Fraction(i, 3) for i in range(1, 7)))
    world = World(
        Compute(job, step=same("0.1"), sample=same("0.02"), jitter=LogNormalJitter(0.3)), Network(same(900), latency=same("0.1")),
        faults=Faults(lost=PerNode(0.1)),
    )  # fmt: skip
    found = []
    for hosts in (None, on(1, 1, 1, 1, 1, 1)):
        whole = World(world.compute, world.network, hosts=hosts, faults=world.faults)
        fed = run(quadratics([1.0] * 6, samples=[1, 2, 3, 1, 2, 3]), FedAvg(train=steps(2), schedule=schedule), seconds=12, world=whole)
        table = events(fed)
        found.append([table[name].round(6).tolist() for name in ("time", "node", "job", "version")])
        good(fed)
    assert found[0] == found[1]


@pytest.mark.parametrize("schedule", [ALL, Rounds(Count(5), wait_for=3), Buffered(2, Count()), Buffered(3, Count(4)), Ticks(Fraction(2))])
def test_nothing_depends_on_how_far_ahead_is_looked(schedule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A federation that asks for one arrival at a time sees the same events."""
    world = World(
        Compute(job=PerNode(tuple(Fraction(i, 7) for i in range(1, 8))), jitter=LogNormalJitter(0.5)),
        Network(same(150), same(150), same("0.1")),
        hosts=on(3, 1, 3, stack=same("0.2"), together=2, merge=Fraction(1, 10)),
        faults=Faults(crash=PerNode(0.1), lost=PerNode(0.1)),
    )
    runs = []
    for alone in (False, True):
        fed = federation(quadratics([1.0] * 7), FedAvg(train=steps(), schedule=schedule), seconds=16, world=world, plan="looped")
        if alone:
            whole = fed.flight.peek
            monkeypatch.setattr(fed.flight, "peek", lambda count, until, whole=whole: whole(min(count, 1), until))
        fed.run()
        good(fed)
        runs.append(fed.ledger.rows[: fed.ledger.used].tolist())
    assert sorted(runs[0]) == sorted(runs[1])  # of one moment what broke stands first
    assert len(runs[0]) > 40


# What makes no sense


def test_machines_name_each_node_once() -> None:
    people = Population(6, {"often": range(3), "rare": range(3, 6)})
    one, two = Choice(ids=range(4)), Choice(ids=range(4, 6))
    assert Hosts(nodes=(Choice("even"), Choice("odd"))).of_nodes(people).tolist() == [0, 1] * 3
    assert Hosts(nodes=((Choice(ids=range(2)), Choice(ids=range(5, 6))), Choice(ids=range(2, 5)))).of_nodes(people).tolist() == [
        0,
        0,
        1,
        1,
        1,
        0,
    ]
    assert Hosts(nodes=(Choice("rare"), Choice("often"))).of_nodes(people).tolist() == [1, 1, 1, 0, 0, 0]
    for nodes, what in (
        ((one, Choice(ids=range(3, 6))), "node 3 is on machines 0 and 1"),
        (((one, Choice(ids=range(1))), two), "node 0 is twice on machine 0"),
        ((one, Choice(ids=range(4, 5))), "node 5 is on no machine"),
        ((one, Choice(ids=range(4, 7))), "node 6 of 6"),
        ((one, two, ()), "machine 2 has no nodes"),
        ((Choice(share=0.5),), "not drawn as a share"),
        ((Choice("seldom"),), "no group `seldom`"),
    ):
        with pytest.raises(ValueError, match=what):
            Hosts(nodes=nodes).of_nodes(people)


@pytest.mark.parametrize(
    ("world", "what"),
    [
        (World(network=Network(up=PerNode((Fraction(1), Fraction(2)))), hosts=on(2)), "nodes 0 and 1 are on machine 0"),
        (World(network=Network(server_up=Fraction(9)), hosts=on(2)), "world.network.server_up: not together"),
        (World(network=Network(loss=Independent(PerNode(0.1))), hosts=on(2)), "world.network.loss: not together"),
        (World(energy=Energy(compute=same(1)), hosts=on(2)), "world.energy: energy of a node is counted: not together"),
    ],
)
def test_what_does_not_go_together(world: World, what: str) -> None:
    with pytest.raises(SettingError, match=what):
        federation(quadratics([1.0, 2.0]), FedAvg(train=steps(), schedule=ALL), 1, world)


def test_peers_have_no_machines() -> None:
    with pytest.raises(SettingError, match="machines work for a server"):
        federation(quadratics([1.0, 2.0]), Dsgd(train=steps(), schedule=Gossip()), 1, World(Compute(job=same(1)), hosts=on(2)))


def test_values_by_range() -> None:
    assert covering(["often", "rare"], 3) is None
    assert covering(["2", "0..1"], 3) == {"2": range(2, 3), "0..1": range(2)}
    for words, what in (
        (["0..1", "1..2"], "node 1 is named twice"),
        (["0", "2"], "no value for node 1"),
        (["0..1"], "no value for node 2"),
        (["0..3"], "node 3 of 3"),
        (["2..1"], "holds nothing"),
    ):
        with pytest.raises(ValueError, match=what):
            covering(words, 3)


HOSTS = """\
task: {data: digits, partition: {name: iid, nodes: 8}, model: logistic}
strategy: fedavg
train: {steps: 2, batch: 8, lr: 0.1}
schedule: {name: rounds, cohort: 4}
world:
  hosts: {nodes: [0..4, [5, 6..7]], stack: {0..4: 1 s, 5..7: 2 s}, together: 3, merge: 10 ms}
  compute: {sample: 20 ms}
  network: {up: {0..4: 1 kB/s, 5..7: 20 kB/s}, latency: 50 ms}
stop: {rounds: 3}
track: none
"""


def test_hosts_in_a_scenario(folder: Path) -> None:
    """It runs, what it resolves to runs again to the same events, and mistakes are told at their place."""
    done = simulate(folder, text=HOSTS)
    again = simulate(folder, text=(done.path / "scenario.yaml").read_text(), into="again")
    listed = simulate(
        folder,
        "world.hosts=[0..4, [5, 6..7]]",
        "world.network.up=1kB/s",
        text=HOSTS.partition("world:")[0] + "track: none\nstop: {rounds: 1}",
        into="listed",
    )
    assert [listed.parameters[f"world.hosts.nodes.{at}"] for at in (0, 1)] == ["0..4", "[5, 6..7]"]
    assert all(np.array_equal(done.columns[name], again.columns[name]) for name in done.columns)
    for old, new, what in (
        ("6..7]]", "6]]", "small.yaml:6:18: world.hosts.nodes: node 7 is on no machine"),
        ("[5, 6..7]", "4..7", "world.hosts.nodes: node 4 is on machines 0 and 1"),
        ("merge:", "merges:", "unknown key `world.hosts.merges`; did you mean `world.hosts.merge`?"),
        ("stack: {0..4: 1 s, ", "stack: {0..3: 1 s, ", "world.hosts.stack: no value for node 4"),
        ("20 kB/s}", "20 kB}", "a rate is due"),
        ("up: {0..4:", "up: {0..2: 2 kB/s, 3..4:", "world.network.up: nodes 0 and 3 are on machine 0"),
    ):
        (folder / "small.yaml").unlink()
        assert what in refused("run", write(folder, HOSTS.replace(old, new)))


def test_a_run_on_machines_goes_on_where_it_was(folder: Path) -> None:
    """Jobs that wait, and are on their way, are in the checkpoint."""
    text = HOSTS.replace("{name: rounds, cohort: 4}", "{name: buffered, size: 2, concurrency: 7}")
    whole = simulate(folder, "stop.rounds=9", text=text)
    simulate(folder, "stop.rounds=4", text=text, into="part")
    same_run(whole, resumed(folder / "part", "stop.rounds=9"))
