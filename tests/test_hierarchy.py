"""Edge servers: recursions, times and bytes worked out by hand, and what they reduce to."""

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import TASKS, TEXT, call, resumed, simulate, write
from launch import same as same_run
from numpy.typing import NDArray
from tools import durations, events, models, quadratics, same, steps
from tools import quick as run

from fedsim.base.errors import FedsimError
from fedsim.base.keys import bits
from fedsim.codecs import TopK
from fedsim.federation.federation import Federation
from fedsim.federation.tiers import Tiers
from fedsim.method.strategy import Strategy
from fedsim.report.checks import check_events
from fedsim.report.inspection import inspect_run
from fedsim.run.building import build
from fedsim.scenario import load
from fedsim.schedule import Gossip, Hierarchy, Rounds
from fedsim.schedule.hierarchy import of_each
from fedsim.settings.values import Count, PerNode, Population
from fedsim.topology import Ring
from fedsim.world import Availability, Edges, Network, Timetable, World
from strategies.dsgd import Dsgd
from strategies.fedadam import FedAdam
from strategies.fedavg import FedAvg
from strategies.fedavgm import FedAvgM

B = [0.0, 4.0, 8.0, 8.0, -3.0, 2.5]
SAMPLES = [1, 3, 2, 5, 4, 2]
ALL = Rounds(cohort=Count())
SIZE = 80  # bytes of a message, either way


def method(kind: type[Strategy] = FedAvg, count: int = 1, lr: float = 0.5, uplink: Any = None, **schedule: Any) -> Strategy:
    return kind(train=steps(count, lr), schedule=Hierarchy(**schedule), **({"crosslink": uplink} if uplink else {}))


def good(fed: Federation) -> None:
    fed.ledger.add("evaluate", time=fed.now, version=fed.version)
    for check in check_events(fed.ledger.columns(), {"final": fed.ledger.totals()}):
        assert check.ok, check


def last(fed: Federation) -> list[float]:
    return [round(x, 12) for x in fed.strategy.model(fed.state)[:, 0].tolist()]


def test_edges_merge_their_nodes_and_the_server_them() -> None:
    """A step halves the way to the node's centre. The first edge goes 0, 1, 1.5 (mean 2), the other 0, 4, 6 (mean 8); the server, by
    samples 1 to 3, goes to (1.5 + 3 x 6) / 4 = 4.875, and nowhere before. Then 3.4375 and 6.4375, 2.71875 and 7.21875: 6.09375."""
    fed = run(quadratics([0.0, 4.0, 8.0, 8.0], samples=[1, 1, 3, 3]), method(edges=2, every=2), 4)
    assert models(fed).flatten().tolist() == [0.0, 0.0, 4.875, 4.875, 6.09375]
    good(fed)


@pytest.mark.parametrize("kind", [FedAvg, FedAvgM, FedAdam])
def test_reporting_each_round_is_the_method_itself(kind: type[Strategy]) -> None:
    task = quadratics(B, samples=SAMPLES)
    plain = models(run(task, kind(train=steps(2, 0.3), schedule=ALL), 4))
    assert torch.equal(models(run(task, method(kind, 2, 0.3, edges=1), 4)), plain)  # in bits
    for settings in ({"edges": 3}, {"edges": (4, 2), "every": (1, 1)}):
        torch.testing.assert_close(models(run(task, method(kind, 2, 0.3, **settings), 4)), plain, atol=1e-12, rtol=0)


def test_an_edge_a_node_is_local_training() -> None:
    task = quadratics(B, samples=SAMPLES)
    edged = models(run(task, method(count=2, lr=0.3, edges=6, every=3), 6))
    plain = models(run(task, FedAvg(train=steps(6, 0.3), schedule=ALL), 2))
    torch.testing.assert_close(edged[::3], plain, atol=1e-12, rtol=0)


def test_what_is_not_reported_when_the_run_ends_is_reported_then() -> None:
    """One node, centre 8: 4, 6, 7 after each round."""
    found = [run(quadratics([8.0]), method(edges=1, every=every), 3) for every in (2, 3)]
    assert [models(fed).flatten().tolist() for fed in found] == [[0, 0, 6, 6], [0, 0, 0, 7]]
    assert [last(fed) for fed in found] == [[7.0], [7.0]]


def test_two_links_have_their_own_times_and_bytes() -> None:
    """A round takes 8 s: the slowest node works 4 s, and hears and sends 80 bytes at 40 a second. Four edges report each round, in
    1 s + 4 s at the slowest, to two, which report each second time, in 1 s + 0.5 s, to the server; what comes back takes 1 s a level."""
    network = Network(up=PerNode((Fraction(40), Fraction(20), *[Fraction(40)] * 2, Fraction(160), Fraction(160))), latency=same(1))
    world = World(durations(1, 2, 3, 4).compute, Network(up=same(40), down=same(40)), edges=Edges(network))
    fed = run(quadratics(B[:4]), method(edges=(4, 2), every=(1, 2)), 2, world)
    mixed = events(fed, "mix")
    assert mixed["time"].tolist() == [13.0] * 4 + [14.0] * 4 + [27.0] * 4 + [28.5] * 2 + [29.5] * 2 + [30.5] * 4
    assert mixed["node"].tolist() == [0, 1, 2, 3] * 3 + [4, 5] * 2 + [0, 1, 2, 3]
    assert mixed["bytes_up"].tolist() == [SIZE] * 4 + [0] * 4 + [SIZE] * 6 + [0] * 6
    assert fed.ledger.bytes_cross == 20 * SIZE and fed.ledger.bytes_up == fed.ledger.bytes_down == 8 * SIZE
    good(fed)


@dataclass(frozen=True)
class Missing(Availability):
    """Edge 1 is down at version 2."""

    def present(self, people: Population, key: torch.Tensor, version: int) -> NDArray[np.bool_]:
        return np.asarray(np.arange(people.nodes) != (1 if version == 2 else -1))


def test_an_edge_that_is_down_waits_and_reports_what_it_has_later() -> None:
    """Centres 0 and 8. After two rounds edge 1 has gone 0, 4, 6 and is down, also when the third begins; then it goes on to 7. It reports
    three rounds, the other two: 3/5 of 7."""
    fed = run(quadratics([0.0, 8.0]), method(edges=2, every=2), 4, World(edges=Edges(availability=Missing())))
    assert events(fed, "dispatch")["node"].tolist() == [0, 1, 0, 1, 0, 0, 1]
    assert models(fed).flatten().tolist() == [0.0, 0.0, 0.0, 0.0, pytest.approx(4.2, abs=1e-12)]
    good(fed)


def test_who_is_below_an_edge_that_is_down_is_cut_off() -> None:
    """Edge 3, to whom edge 1 reports, leaves for good in the first round: edge 1 goes on by itself, to 4 and 6 of 8."""
    there = Timetable(leaves={"3": Fraction(1, 2)})
    fed = run(
        quadratics([0.0, 8.0]), method(edges=(2, 2), every=(1, 1)), 2, World(durations(1, 1).compute, edges=Edges(availability=there))
    )
    assert events(fed, "mix")["node"].tolist() == [0, 2, 2, 0] * 2
    assert isinstance(fed, Tiers) and fed.gone.flatten().tolist() == [0.0, 6.0, 0.0, 0.0] and last(fed) == [0.0]
    good(fed)


def test_cohorts_are_drawn_at_each_edge() -> None:
    nodes = np.array([0, 2, 3, 5, 6, 7, 9])
    home, most = np.array([1, 0, 1, 1, 2, 0, 1]), np.array([5, 2, 1, 3])
    drawn = [of_each(nodes, home, most, torch.tensor(key)) for key in range(60)]
    assert all(np.bincount(home[np.searchsorted(nodes, one)], minlength=3).tolist() == [2, 2, 1] for one in drawn)
    assert {tuple(one[np.isin(one, [0, 3, 5, 9])]) for one in drawn} == {(0, 3), (0, 5), (0, 9), (3, 5), (3, 9), (5, 9)}
    home, most, score = np.arange(900) // 300, np.array([3, 1, 0]), bits(torch.tensor(7), 900).numpy()
    lowest = [300 * edge + np.argsort(score[home == edge])[:count] for edge, count in enumerate(most)]
    assert of_each(np.arange(900), home, most, torch.tensor(7)).tolist() == np.sort(np.concatenate(lowest)).tolist()
    fed = run(quadratics(B, samples=SAMPLES), method(edges=3, cohort=Count(1)), 3)
    assert (events(fed, "dispatch")["node"] // 2).tolist() == [0, 1, 2] * 3


def test_edges_that_gossip() -> None:
    """An edge a node is gossip among peers, in bits; with rounds between it is gossip with as many more steps; two nodes an edge are one
    node with the mean of their centres."""
    task = quadratics(B, samples=SAMPLES)
    peers = models(run(task, Dsgd(train=steps(1, 0.3), schedule=Gossip(Ring())), 4))
    assert torch.equal(models(run(task, method(Dsgd, 1, 0.3, edges=6, topology=Ring()), 4)), peers)
    peers = models(run(task, Dsgd(train=steps(3, 0.3), schedule=Gossip(Ring())), 2))
    torch.testing.assert_close(
        models(run(task, method(Dsgd, 1, 0.3, edges=6, every=3, topology=Ring()), 6))[::3], peers, atol=1e-12, rtol=0
    )
    pairs = models(run(quadratics([2.0, 8.0, -0.25]), Dsgd(train=steps(1, 0.3), schedule=Gossip(Ring())), 2))
    world = World(durations(*[1] * 6).compute, edges=Edges(Network(up=same(80), down=same(160), latency=same(1))))
    fed = run(quadratics(B), method(FedAvg, 1, 0.3, edges=3, topology=Ring()), 2, world)
    torch.testing.assert_close(models(fed), pairs, atol=1e-12, rtol=0)
    assert fed.now == fed.ticks(Fraction(2 * (1 + 1 + 2 + 1)))  # work, latency, 160 bytes out, 160 in
    assert fed.ledger.bytes_cross == 2 * 6 * SIZE and fed.ledger.bytes_up == fed.ledger.bytes_down == 12 * SIZE
    good(fed)


def test_each_link_has_its_codec() -> None:
    """Two numbers, and the larger alone goes from the edge: (0, 4) of (2, 4); what the server says goes whole."""
    task = quadratics([[4.0, 8.0]])
    assert fed_row(run(task, method(uplink=TopK(0.5), edges=1, every=1), 1)) == [0.0, 4.0]
    assert fed_row(run(task, method(edges=1, every=1), 1)) == [2.0, 4.0]
    lossy = run(task, method(edges=1, every=1, downlink=TopK(0.5)), 2)
    assert fed_row(lossy) == [4.0, 6.0]  # the edge heard (0, 4), and goes to (2, 6)


def fed_row(fed: Federation) -> list[float]:
    return fed.strategy.model(fed.state)[0].tolist()


EDGES = """
task: {data: digits, partition: {name: dirichlet, alpha: 0.5, nodes: 8}, model: logistic}
strategy: fedavgm
train: {steps: 2, batch: 8, lr: 0.1}
schedule: {name: hierarchy, edges: [3, 2], every: [2, 2], nodes: random, cohort: 2}
crosslink: {name: ef21, inner: {name: topk, fraction: 10 %}}
world:
  compute: {job: {name: linear, from: 4 s, to: 0.5 s}}
  network: {up: 1 MB/s, down: 4 MB/s, latency: 50 ms}
  edges: {network: {up: 2 MB/s, latency: 10 ms}, availability: {name: bernoulli, chance: 80 %}}
stop: {rounds: 7}
track: none
"""


def test_stopped_it_is_the_same_run(tmp_path: Path) -> None:
    whole = simulate(tmp_path, text=EDGES, into="whole")
    simulate(tmp_path, "stop.rounds=3", "checkpoint.every=1 ms", text=EDGES, into="cut")
    same_run(whole, resumed(tmp_path / "cut", "stop.rounds=7"))
    assert "edges up" in inspect_run(whole)[0]


@pytest.mark.slow
def test_in_processes_it_is_the_same_run(tmp_path: Path) -> None:
    whole, spread = (simulate(tmp_path, f"engine.processes={count}", text=EDGES, into=f"by {count}") for count in (1, 2))
    same_run(whole, spread)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"every": 0}, "at least 1 is due"),
        ({"every": "5 s"}, "`every` is counted in rounds here"),
        ({"every": "[2, 2]"}, "`every` has 2 intervals for 1 levels"),
        ({"edges": 9}, "schedule.edges: 9 edges for 8 nodes; each edge has at least one"),
        ({"edges": "[2, 3]", "every": "[1, 1]"}, "3 edges above 2"),
        ({"nodes": "[0..3, 4..6, 9]"}, "schedule.nodes: node 9 of 8 (the first is 0)"),
        ({"nodes": "[0..3, 4..7, []]"}, "schedule.nodes: edge 2 has no nodes"),
        ({"nodes": "[0..3, 4..7]"}, "schedule.nodes: the nodes of 2 edges; there are 3"),
        ({"nodes": "[0..3, 4..5, 6]"}, "schedule.nodes: node 7 is on no edge"),
        ({"nodes": "{name: file, file: homes.txt}"}, "homes.txt:4: no edge `3`; there are 3 (the first is 0)"),
        ({"nodes": "groups"}, "schedule.nodes: 3 edges, and 0 groups"),
        ({"cohort": 5}, "schedule.cohort: 5 of 3 nodes at edge 0"),
        ({"edges": "[3, 1]", "every": "[1, 1]", "topology": "ring"}, "they have a server"),
        ({"strategy": "scaffold"}, "strategy: `scaffold` merges at a server; under `hierarchy` nodes have edge servers"),
        ({"strategy": "gradient_tracking"}, "strategy: `gradient_tracking` is for peers: among edge servers with a `schedule.topology`"),
        ({"strategy": "ifca", "topology": "ring"}, "strategy: `ifca` merges at a server"),
        ({"privacy": "{clip: 1, noise: 1}"}, "privacy: noise is added to what nodes send, by a server"),
        ({"world": "{network: {server_up: 1 MB/s}}"}, "world.network.server_up: of nodes and a server"),
        ({"world": "{edges: {network: {up: [1 MB/s, 2 MB/s]}}}"}, "world.edges.network.up: of 3 edges: a list of 2 values for 3 nodes"),
        ({"world": "{edges: {network: {server_up: 1 MB/s}}}"}, "world.edges.network.server_up: each edge has its own link"),
        ({"schedule": "rounds", "world": "{edges: {network: {up: 1 MB/s}}}"}, "world.edges: no edge servers under `rounds`"),
    ],
)
def test_what_has_no_meaning_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("homes.txt").write_text("0\n1\n2\n3\n0\n0\n0\n0\n")
    whole = {"strategy", "privacy", "world", "schedule"}
    words = [f"{name}={value}" if name in whole else f"schedule.{name}={value}" for name, value in settings.items()]
    with pytest.raises(FedsimError, match=re.escape(said)):
        built(tmp_path, words)


def built(folder: Path, words: list[str]) -> None:
    [loaded] = load(write(folder, FEW), words)
    build(loaded, TASKS)


FEW = TEXT.replace("{name: rounds, cohort: 4}", "{name: hierarchical, edges: 3, every: 2 rounds}")


def test_edge_servers_are_not_deployed(folder: Path) -> None:
    write(folder, FEW)
    result = call("serve", "small.yaml", "--insecure")
    assert result.exit_code == 2 and "schedule: edge servers are simulated only" in result.output and "Traceback" not in result.output


def test_a_hundred_thousand_nodes() -> None:
    """A round costs what its cohorts cost, and drawing them."""
    fed = run(quadratics(np.linspace(-1, 1, 100_000)), method(edges=(100, 10), every=(1, 2), cohort=Count(1)), 2)
    assert fed.sent == 200 and last(fed)[0] == pytest.approx(0, abs=0.05)
