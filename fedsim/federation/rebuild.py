"""Rebuilding the state of replicas from a log of their messages, as a machine does that joins."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedsim.base.errors import RunError
from fedsim.base.rows import Rows, model_hash
from fedsim.codecs import Codec
from fedsim.federation.federation import Federation
from fedsim.federation.messages import BrokenLog, Record, decoded, read, wire_of
from fedsim.federation.replicas import Replicas
from fedsim.schedule.news import NO_NEWS, News


def rebuild(fed: Federation, raw: bytes, about: Mapping[str, Any]) -> int:
    """Takes in all that a log has and a federation of replicas has not, as who joins does; how many merges that were.

    The state is the first one, or that of a later merge, `fed.version`. Raises BrokenLog for a log that is not whole, of another run
    than `about` tells, or that leads to other states than it says.
    """
    assert fed.companion(Replicas), "only replicas are rebuilt from messages"
    codec, taken = fed.strategy.uplink, 0
    like = {name: rows[:1].cpu() for name, rows in fed.flight.like.items()}
    size = sum(rows.nbytes for rows in wire_of(codec, like).values())
    whose, records = read(raw, size)
    if differ := [f"{name} is {whose.get(name)}, not {value}" for name, value in about.items() if whose.get(name) != value]:
        raise BrokenLog(f"it is another run's: {'; '.join(differ)}")
    for record in records:
        if record.version < fed.version:
            continue
        if record.version > fed.version:
            raise BrokenLog(f"it goes on with round {record.version + 1}; round {fed.version + 1} is missing")
        _take(fed, record, codec, like)
        taken += 1
    return taken


def _take(fed: Federation, record: Record, codec: Codec, like: Rows) -> None:
    """One merge."""
    count, news = len(record.node), NO_NEWS
    try:
        if count:
            parts = decoded(codec, record.payload, count, like)
            slot = fed.flight.post({name: rows.to(fed.worker.device) for name, rows in parts.items()}, count)
            news = News(record.node, record.job, np.full(count, record.version), slot, np.full(count, np.nan))
        fed.merge(news)
    except RunError as error:
        raise BrokenLog(f"round {record.version + 1}: {error}") from error
    if bytes.fromhex(model_hash(*fed.state.values())) != record.state:
        raise BrokenLog(f"round {record.version + 1}: its messages lead to another state than when they were written")
