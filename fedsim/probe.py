"""What is learnt before a run: sizes of messages, and that the parts of a scenario go together."""

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedsim.clock import FOREVER
from fedsim.codecs import row_bytes
from fedsim.contract import state_of
from fedsim.errors import SettingError, TooFew
from fedsim.flight import News
from fedsim.link import Link, fitting
from fedsim.replicas import Stream
from fedsim.rows import parted

if TYPE_CHECKING:
    from fedsim.federation import Federation


def probe(fed: "Federation", planned: int | None) -> None:
    """Learns the sizes of messages, and that work and merge run at all, from one job and one merge that leave no trace."""
    state, first = fed.fresh(), torch.zeros(1, dtype=torch.int64, device=fed.worker.device)
    told = fed.strategy.instruct(state, first)
    heard = {name: rows[:1] for name, rows in fed.strategy.broadcast(state).items()} | fed.buffers.told(first, 1)
    if packet := fed.strategy.packet(state):
        remembered = {} if fed.strategy.downlink.lossless else packet
        fed.stream = Stream(fed.nodes, fed.down.size(packet), row_bytes(heard | remembered))
        fed.down_bytes = fed.stream.packet
    else:
        fed.down_bytes = 0 if fed.schedule.peers else fed.down.size(heard) + row_bytes(told)
    fed.flight.peer_bytes = fed.cross.size({name: state[name][:1] for name in fed.strategy.mixed} | parted(heard)[1])
    with fitting("uplink"):
        parts = fed.flight.probe(heard | {name: rows[:1] for name, rows in told.items()})
    up = Link(fed.strategy.uplink, "uplink", fed.seed, 0)
    fed.flight.first_bytes, fed.flight.up_bytes = (0, 0) if fed.schedule.peers else up.sizes(fed.buffers.billed(parts))
    fed.state_bytes = fed.down_bytes
    if fed.replicas:
        fed.down_bytes = (fed.schedule.most_messages(fed.nodes) - 1) * fed.flight.up_bytes
    fed.flight.effort = fed.strategy.effort(state, fed.task) or fed.flight.effort
    if (fed.durations() < 0).any() or fed.durations().max() > FOREVER // 10:
        raise SettingError("world", "a job takes longer than the clock can count; see `compute` and `network`")
    fed.schedule.check(fed)
    fed.strategy.check(fed.schedule.most_messages(fed.nodes))
    if fed.strategy.privacy is not None:
        fed.release = fed.strategy.privacy.release(fed, planned)
    one, zero = np.ones(1), np.zeros(1, dtype=np.int64)
    chance = one if fed.schedule.samples() and fed.nature.faultless else one * np.nan
    news = News(zero, zero, zero, fed.flight.replies.post(parts, 1), chance)
    try:
        with torch.no_grad(), suppress(TooFew):  # how many are too few is known by now
            before = dict(state)
            state_of(fed.strategy.merge(state, fed.seen(fed.inbox(news, None))), before, "merge")
    except ValueError as error:
        raise SettingError("strategy", f"`{fed.strategy.name}` under schedule `{fed.schedule.name}`: {error}") from error
    fed.flight.replies.release(news.slot)
