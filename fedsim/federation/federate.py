"""Making a federation ready to run: what rides along, sizes of messages, and that the parts of a scenario go together."""

from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch

from fedsim.base.clock import FOREVER
from fedsim.base.errors import SettingError, TooFew
from fedsim.base.rows import Rows, parted
from fedsim.codecs import Identity, row_bytes
from fedsim.engines.local import Worker
from fedsim.federation import unlike
from fedsim.federation.buffers import Buffers
from fedsim.federation.federation import Federation
from fedsim.federation.field import Field
from fedsim.federation.flight import Flight
from fedsim.federation.health import Health
from fedsim.federation.ledger import Ledger
from fedsim.federation.lies import Lies
from fedsim.federation.link import Downlink, Link, fitting
from fedsim.federation.lost import LostMessages
from fedsim.federation.machines import Machines, Merging
from fedsim.federation.messages import MessageLog
from fedsim.federation.replicas import Replicas, Stream
from fedsim.federation.tiers import Tiers
from fedsim.method.contract import state_of
from fedsim.method.replicated import Replicated
from fedsim.method.strategy import Strategy
from fedsim.schedule.hierarchy import Hierarchy
from fedsim.schedule.news import News
from fedsim.world.nature import Nature

AT_EDGES = "`fedavg`, `fedprox`, `fedavgm`, `fedadagrad`, `fedadam` and `fedyogi` work there"


def federate(
    worker: Worker,
    nature: Nature,
    ledger: Ledger,
    seed: int,
    planned: int | None = None,
    field: Callable[..., Field] = Flight,
    kind: type[Federation] = Federation,
) -> Federation:
    """A federation of this kind whose jobs such a field computes, with `planned` rounds if that is known.

    Raises SettingError where the parts of its scenario don't go together.
    """
    strategy, schedule = worker.strategy, worker.strategy.schedule
    peers, edged = schedule.peers, isinstance(schedule, Hierarchy)
    if edged and not (kind is Federation and isinstance(field, type) and issubclass(field, Flight)):
        raise SettingError("schedule", f"edge servers are simulated only: `{schedule.name}` can't be deployed; `rounds` can")
    if nature.world.edges is not None and not edged:
        raise SettingError("world.edges", f"no edge servers under `{schedule.name}`; see schedule `{Hierarchy.name}`")
    if strategy.one_hearer and (peers or edged):
        other = f"nodes have edge servers; {AT_EDGES}" if edged else "each node is its own; `dsgd` is for peers"
        raise SettingError("strategy", f"`{strategy.name}` merges at a server; under `{schedule.name}` {other}")
    kind = Tiers if edged else kind
    fed = kind(worker, field(worker, nature, ledger, peers), nature, ledger, seed)
    if peers:
        _stand_alone(fed)
        fed.flight.exchanges = fed.schedule.exchanges(fed)
    if isinstance(fed, Tiers):
        _between(fed)
    unlike.check(fed.strategy, fed.task)
    _descends(fed.strategy, fed)
    if nature.liars is not None:
        fed.ride(Lies(nature.liars))
    if nature.lost.any() and peers:
        fed.ride(LostMessages(nature.lost, fed.strategy.stochastic, seed))
    if fed.task.buffers.size:
        fed.ride(Buffers(fed.task, fed.hearers, peers, fed.strategy.train.batch_size(fed.task), seed))
    fed.ride(Health())
    if isinstance(fed.flight, Flight) and isinstance(fed.flight.traffic, Machines):
        fed.ride(Merging(fed.flight.traffic, nature.merge))
    parts = unlike.measure(fed) if fed.task.architectures else _measure(fed)
    _in_time(fed)
    if isinstance(fed, Tiers) and fed.served:
        _one_update(fed, parts)
    fed.schedule.check(fed)
    fed.strategy.check(fed.schedule.fewest_messages(fed.nodes, planned or 1))
    if fed.strategy.privacy is not None:
        fed.ride(account := fed.strategy.privacy.account(fed, fed.strategy, fed.task, planned))
        worker.privacy = account.privacy
    _try_merge(fed, parts)
    return fed


def _stand_alone(fed: Federation) -> None:
    """Raises SettingError where strategy or world need a server, under a schedule of peers."""
    own, liars, privacy = f"under `{fed.schedule.name}` each node is its own", fed.nature.liars, fed.strategy.privacy
    if liars is not None and liars.attackers.forges:
        what = f"`{liars.attackers.name}` changes what a server hears"
        raise SettingError("world.attackers", f"{what}; {own}; `label_flip` has a meaning there")
    if privacy is not None and privacy.at_server:
        raise SettingError("privacy", f"noise is added at a server; {own}")
    if fed.nature.machine is not None:
        raise SettingError("world.hosts", f"machines work for a server; {own}")
    if fed.nature.shared:
        raise SettingError(f"world.network.server_{'up' if fed.nature.server_up else 'down'}", f"no server: {own}")
    if fed.nature.loss is not None:
        raise SettingError("world.network.loss", f"loss is known between a server and its nodes only; {own}")
    fed.schedule.check_peers(fed)


def _between(fed: Tiers) -> None:
    """Raises SettingError where strategy or world need a server that hears the nodes themselves."""
    what, privacy, nature = f"under `{fed.schedule.name}` that hears edge servers", fed.strategy.privacy, fed.nature
    if fed.task.architectures:
        raise SettingError("task.models", f"groups have models of their own, and edge servers merge one; {what}")
    if privacy is not None and privacy.at_server:
        raise SettingError("privacy", f"noise is added to what nodes send, by a server; {what}")
    if fed.task.sends_buffers:
        raise SettingError("task.model", "has running statistics, which edges don't merge; with `task.buffers: local` nodes keep them")
    if nature.machine is not None or nature.shared:
        way = "hosts" if nature.machine is not None else f"network.server_{'up' if nature.server_up else 'down'}"
        raise SettingError(f"world.{way}", f"of nodes and a server; {what}; see `world.edges`")
    if fed.around.shared:
        raise SettingError(f"world.edges.network.server_{'up' if fed.around.server_up else 'down'}", "each edge has its own link; see `up`")


def _one_update(fed: Tiers, parts: Rows) -> None:
    """Raises SettingError where nodes hear or send (`parts`) more than edges can stand in for."""
    state, first = fed.fresh(), torch.zeros(1, dtype=torch.int64, device=fed.worker.device)
    heard = [*fed.strategy.broadcast(state), *fed.strategy.instruct(state, first), *fed.strategy.packet(state)]
    if fed.strategy.kind == "peers":
        raise SettingError("strategy", f"`{fed.strategy.name}` is for peers: among edge servers with a `schedule.topology`; {AT_EDGES}")
    sent = parted(parts)[0]
    if len(heard) > 1 or list(sent) != ["update"] or sent["update"].shape[1:] != fed.heard.shape[1:]:
        what = f"nodes hear {' and '.join(f'`{name}`' for name in heard)} and send {' and '.join(f'`{name}`' for name in sent)}"
        raise SettingError("strategy", f"`{fed.strategy.name}`: {what}, and edges know one model and its `update` alone; {AT_EDGES}")


def _descends(strategy: Strategy, fed: Federation) -> None:
    """Raises SettingError for a strategy that descends along a gradient that there is not, or that privacy refuses."""
    if not (fed.task.loss.differentiable or strategy.forward_only):
        raise SettingError("task.loss", f"`{fed.task.loss.name}` has no gradient, and `{strategy.name}` descends along it")
    if not strategy.forward_only and any(not getattr(layer, "differentiable", True) for layer in fed.task.model.modules()):
        what = f"has layers of whole numbers, without a gradient, and `{strategy.name}` descends along it"
        raise SettingError("task.model", what)
    if strategy.privacy is not None:
        strategy.privacy.check(strategy, fed.task)
    if isinstance(strategy, Replicated):
        strategy.fits()


def _measure(fed: Federation) -> Rows:
    """Learns the sizes of messages from one job that leaves no trace, and what it replied: parts [1, ...]."""
    strategy, state, peers = fed.strategy, fed.fresh(), fed.schedule.peers
    first = torch.zeros(1, dtype=torch.int64, device=fed.worker.device)
    told, heard = strategy.instruct(state, first), {name: rows[:1] for name, rows in strategy.broadcast(state).items()}
    for one in fed.companions.values():
        heard = one.told(heard, first, 1)
    if fed.nature.machine is not None and (isinstance(strategy, Replicated) or strategy.packet(state)):
        raise SettingError("world.hosts", f"`{strategy.name}` sends each node what it missed; machines share what all hear")
    if packet := strategy.packet(state):  # the stream is the merge's: nodes are handed what is broadcast as it is
        remembered = {} if strategy.downlink.lossless else packet
        fed.down_bytes = fed.down.size(packet)
        fed.ride(Stream(fed.nodes, fed.down_bytes, row_bytes(heard | remembered)))
        fed.down = Downlink(Identity(), "downlink", fed.seed, fed.nodes)
    else:
        fed.down_bytes = 0 if peers else fed.down.size(heard) + row_bytes(told)
    fed.flight.peer_bytes = fed.cross.size({name: state[name][:1] for name in strategy.mixed} | parted(heard)[1])
    with fitting("uplink"):
        parts = fed.flight.probe(heard | {name: rows[:1] for name, rows in told.items()})
    up, sent = Link(strategy.uplink, "uplink", fed.seed, 0), parts if fed.task.sends_buffers else parted(parts)[0]
    fed.flight.first_bytes, fed.flight.up_bytes = (0, 0) if peers else up.sizes(sent)
    if isinstance(strategy, Replicated):
        log = MessageLog(strategy.uplink)
        fed.ride(Replicas(fed.nodes, strategy.catch_up == "replay", log, fed.flight.up_bytes, fed.down_bytes))
        fed.down_bytes = (fed.schedule.most_messages(fed.nodes) - 1) * fed.flight.up_bytes
    fed.flight.effort = strategy.effort(state, fed.task) or fed.flight.effort
    return parts


def _in_time(fed: Federation) -> None:
    """Raises SettingError where a job takes too long, now that bytes are known."""
    if (fed.durations() < 0).any() or fed.durations().max() > FOREVER // 10:
        raise SettingError("world", "a job takes longer than the clock can count; see `compute` and `network`")


def _try_merge(fed: Federation, parts: Rows) -> None:
    """One merge that leaves no trace. Raises SettingError where it can't be."""
    one, zero = np.ones(1), np.zeros(1, dtype=np.int64)
    chance = one if fed.schedule.samples() and fed.nature.faultless else one * np.nan
    try:
        with torch.no_grad(), suppress(TooFew):  # how many are too few is known by now
            state = fed.fresh()
            before = dict(state)
            state_of(fed.strategy.merge(state, fed.inbox(News(zero, zero, zero, zero, chance), parts, None)), before, "merge")
    except ValueError as error:
        raise SettingError("strategy", f"`{fed.strategy.name}` under schedule `{fed.schedule.name}`: {error}") from error
