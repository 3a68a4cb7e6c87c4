"""`fedsim profile`: the world of a deployed run, measured from its record, in which the same scenario can be simulated.

Each whole reply tells how long its order's objects were on the way down and how long its stack was computed, by the worker's clock, and
when it came, by the server's; what is left is the way up. Its size, and that of what went down, are known. Of each machine:

- `network.down`, `up`: a line through (bytes, seconds) of what had the way to itself, by `fits.line`; where all messages had one size, the
  rest beside the rate is the quickest round trip of the heartbeats. Other runs of the same machines may add messages of other sizes.
- `network.latency`: half of the two rests, as a job pays it twice: with it the disks, the processes and the orders' own way.
- `compute`, `hosts.stack`: by `fits.work` over stacks: their samples, longest steps, jobs, and once.
- `hosts.merge`: the median from the last reply of a merge to the next dispatch, evaluation included.

Not measured: jitter, faults, who comes and goes, TCP's slow start, machines that share a processor or a link with others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedsim.base.clock import Ints
from fedsim.base.errors import FedsimError
from fedsim.codecs import row_bytes
from fedsim.deploy import fits, own
from fedsim.deploy.decisions import RECORD, Decisions, End
from fedsim.deploy.peers.introducer import without_server
from fedsim.deploy.reality import Reality
from fedsim.deploy.recorded import Recorded
from fedsim.federation.federation import Federation
from fedsim.federation.ledger import KINDS
from fedsim.run.building import Tasks, assemble
from fedsim.run.folders import RunFolder
from fedsim.run.resume import reload
from fedsim.scenario.loader import Loaded
from fedsim.settings.values import Floats
from fedsim.transport.nodes import Nodes, parse

DISPATCH, MERGE, EVALUATE = (KINDS.index(kind) for kind in ("dispatch", "merge", "evaluate"))


@dataclass(frozen=True)
class Machine:
    """What was measured of one. Seconds, and seconds a byte; `jobs` and `stacks` that it is taken from; `off`: the median by which a
    stack's work differs from what is fitted, as a share. A machine from which no reply came has the medians of the others."""

    nodes: Nodes
    name: str
    jobs: int = 0
    stacks: int = 0
    off: float = 0.0
    stack: float = 0.0
    job: float = 0.0
    step: float = 0.0
    sample: float = 0.0
    up: float = 0.0
    down: float = 0.0
    latency: float = 0.0


Host = tuple[str, Nodes, float]  # name, nodes, and the quickest round trip in seconds
NUMBERS = ("stack", "job", "step", "sample", "up", "down", "latency")


@dataclass(frozen=True)
class Profile:
    """The machines of a run, and seconds of its server for a merge."""

    machines: tuple[Machine, ...]
    merge: float
    notes: tuple[str, ...] = ()
    loaded: Loaded | None = None


class Stacks(NamedTuple):
    """Of one machine, in the order of their arrival: arrays [b], seconds. `sent`: when its first job was; `fetched`: bytes of its order
    (nan: of several)."""

    machine: int
    jobs: Ints
    steps: Ints
    samples: Ints
    sent: Floats
    down: Floats
    waited: Floats
    work: Floats
    came: Floats
    size: Floats
    fetched: Floats


def profile(run: RunFolder, *others: RunFolder) -> Profile:
    """Of a run; `others` are runs of the same machines, of which only the links are looked at.

    Raises FedsimError where a folder's run was not deployed, is one of peers, or brought no reply, and where the machines are others.
    """
    loaded, hosts, stacks = _seen(run)
    beside = [_seen(other) for other in others]
    for other, (_, theirs, _) in zip(others, beside, strict=True):
        if [nodes for _, nodes, _ in theirs] != [nodes for _, nodes, _ in hosts]:
            raise FedsimError(f"{other.path}: its nodes were on other machines than those of {run.path}")
    notes = list[str]()
    measured: dict[int, Machine] = {}
    for of in stacks:
        name, nodes, trip = hosts[of.machine]
        ways = [*map(_transfers, [of, *(more for _, _, found in beside for more in found if more.machine == of.machine)])]
        up, down = (np.concatenate([way[at] for way in ways], 1) for at in (0, 1))
        measured[of.machine] = _measured(of, up, down, nodes, name, trip)
        if np.unique(up[0]).size < 2 and np.unique(down[0]).size < 2:
            notes.append(f"{name}: all messages had one size: latency is of heartbeats, rates hold for this size")
        if len(np.unique(np.stack([of.jobs, of.steps, of.samples]), axis=1).T) < 2:
            notes.append(f"{name}: all stacks were alike: their time is laid to the samples")
    usual = [float(np.median([getattr(one, number) for one in measured.values()])) for number in NUMBERS]
    machines = [measured.get(at) or Machine(nodes, name, 0, 0, 0.0, *usual) for at, (name, nodes, _) in enumerate(hosts)]
    if len(machines) > len(measured):
        notes.append("machines from which no reply came have the medians of the others")
    return Profile(tuple(machines), _merge(run), tuple(notes), loaded)


def _seen(run: RunFolder) -> tuple[Loaded, list[Host], list[Stacks]]:
    """What a folder has of its run."""
    if not (run.path / RECORD).exists():
        raise FedsimError(f"{run.path}: a simulated run, whose times are those of its `world`; what is measured is a run of `fedsim serve`")
    decisions = Decisions()
    decisions.open(run.path / RECORD, write=False)
    loaded = reload(run.path, ["track=none", "checkpoint=none"])
    if without_server(loaded.scenario.strategy):
        raise FedsimError(f"{run.path}: a run of peers; links between peers are not measured, only those to a server")
    ends = [end for decision in decisions.known for end in decision.ends if end.whole]
    if not ends:
        raise FedsimError(f"{run.path}: no job came back, so there is nothing to measure")
    fed = _federation(run, loaded)
    hosts = _hosts(run, fed.nodes)
    return loaded, hosts, _stacks(run, fed, ends, [nodes for _, nodes, _ in hosts])


def _federation(run: RunFolder, loaded: Loaded) -> Federation:
    known = {node: size for node, (size, _) in own.known(run.path).items()}
    task = own.of_server(loaded, known) if own.is_own(loaded) else Tasks().get(loaded)
    return assemble(loaded, task, Reality, Recorded).fed


def _hosts(run: RunFolder, nodes: int) -> list[Host]:
    """Name, nodes and quickest round trip of each machine; of two that had a node, the later one has it. Nodes that none had have one."""
    found: list[Host] = []
    left = Nodes.of([range(nodes)])
    for one in sorted((run.workers or {}).get("workers", []), key=lambda one: (one["state"] != "lost", one["since"]), reverse=True):
        mine = parse(one["nodes"]) or Nodes()
        mine = mine.without(mine.without(left))
        left = left.without(mine)
        if mine:
            found.append((f"{one['name']} ({one['id'][:6]})", mine, float(one.get("round_trip") or 0.0)))
    if left:
        found.append(("nobody", left, 0.0))
    return sorted(found, key=lambda one: next(iter(one[1])))


def _stacks(run: RunFolder, fed: Federation, ends: Sequence[End], hosts: Sequence[Nodes]) -> list[Stacks]:
    columns, tick = run.columns, 1.0 / run.ticks_per_second
    rows = np.flatnonzero(columns["kind"] == DISPATCH)
    place = np.full(int(columns["job"].max(initial=0)) + 1, -1)
    place[columns["job"][rows]] = rows
    ends = [end for end in ends if end.job < len(place) and place[end.job] >= 0]  # of a run that was killed, dispatches may be lost
    machine = np.empty(fed.nodes, dtype=np.int64)
    for at, hosted in enumerate(hosts):
        machine[np.array(list(hosted), dtype=np.int64)] = at
    sent, version = columns["time"], columns["version"]
    orders = _orders(fed, machine[columns["node"][rows]], sent[rows], version[rows])
    order_of = dict(zip(columns["job"][rows].tolist(), orders, strict=True))
    batches: dict[tuple[int, str], list[End]] = {}
    for end in ends:
        batches.setdefault((int(machine[end.node]), end.batch), []).append(end)
    steps, samples = fed.flight.effort
    found: dict[int, list[tuple[float, ...]]] = {}
    for (at, _), jobs in batches.items():
        first = min(jobs, key=lambda end: (sent[place[end.job]], end.job))
        nodes = [end.node for end in jobs]
        asked = {order_of[end.job] for end in jobs}
        found.setdefault(at, []).append(
            (
                len(jobs),
                int(steps[nodes].max()),
                int(samples[nodes].sum()),
                sent[place[first.job]] * tick,
                (first.down - first.waited) * tick,
                first.waited * tick,
                first.work * tick,
                first.time * tick,
                float(sum(-(-end.size // 8) * 8 for end in jobs)),
                asked.pop()[1] if len(asked) == 1 else np.nan,
            )
        )
    return [Stacks(at, *np.array(sorted(rows, key=lambda row: row[7])).T) for at, rows in sorted(found.items())]


def _orders(fed: Federation, machine: Ints, time: Ints, version: Ints) -> list[tuple[tuple[int, int], float]]:
    """Of each dispatch [k] its order, and the bytes that this fetched: what all hear where the machine lacked it, and what each hears."""
    state = fed.fresh()
    heard = {name: rows[:1] for name, rows in fed.strategy.broadcast(state).items()}
    told = fed.strategy.instruct(state, fed._ids(np.zeros(1, dtype=np.int64)))
    common, each = row_bytes(heard), row_bytes(told) if told else 0
    if fed.strategy.downlink.init(heard):  # each node hears what its own memory makes of it
        common, each = 0, common + each
    else:
        common = fed.down.size(heard)
    count: dict[tuple[int, int], int] = {}
    new: dict[tuple[int, int], tuple[int, int]] = {}
    keys = list(zip(machine.tolist(), time.tolist(), strict=True))
    for key, seen in zip(keys, version.tolist(), strict=True):
        count[key] = count.get(key, 0) + 1
        new.setdefault((key[0], seen), key)
    first = set(new.values())
    return [(key, float(common * (key in first) + each * count[key])) for key in keys]


def _transfers(of: Stacks) -> tuple[Floats, Floats]:
    """Bytes and seconds [2, t] of what went up, and of what went down, with the way to itself."""
    ready = of.sent + of.down + of.waited + of.work
    alone = np.r_[True, of.came[:-1] <= ready[1:]]  # what came before it had left the link
    down = of.fetched > 0
    up = np.stack([of.size[alone], np.maximum((of.came - ready)[alone], 0.0)])
    return up, np.stack([of.fetched[down], of.down[down]])


def _measured(of: Stacks, up: Floats, down: Floats, nodes: Nodes, name: str, trip: float) -> Machine:
    features = np.stack([of.samples, of.steps, of.jobs, np.ones(len(of.jobs))], 1).astype(np.float64)
    sample, step, job, stack = fits.work(features, of.work).tolist()
    fitted = features @ np.array([sample, step, job, stack])
    off = float(np.median(np.abs(fitted - of.work) / np.maximum(of.work, 1e-9)))
    (slope_up, rest_up), (slope_down, rest_down) = (fits.line(way[0], way[1], trip) if way.size else (0.0, 0.0) for way in (up, down))
    latency = (rest_up + rest_down) / 2
    return Machine(nodes, name, int(of.jobs.sum()), len(of.jobs), off, stack, job, step, sample, slope_up, slope_down, latency)


def _merge(run: RunFolder) -> float:
    """Seconds from a merge to the dispatch after it, evaluations between them included."""
    kind, time = run.columns["kind"], run.columns["time"]
    kept = np.flatnonzero(kind != EVALUATE)
    after = np.flatnonzero((kind[kept][:-1] == MERGE) & (kind[kept][1:] == DISPATCH))
    gaps = time[kept][after + 1] - time[kept][after]
    return float(np.median(gaps)) / run.ticks_per_second if len(gaps) else 0.0
