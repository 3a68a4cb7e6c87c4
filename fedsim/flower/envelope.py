"""What fedsim's ServerApp and ClientApp say to each other: records of a Flower message, with all content as bytes.

    query   run: run, nodes, beside, scenario          ->  facts: facts (JSON; `refused` where the node can't take part)
    train   run, order: order, settled; hash: content  ->  reply: replies, content

What all nodes hear is a record of its own, so that Flower carries and keeps it once.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import ConfigRecord, RecordDict
from google.protobuf.message import DecodeError

from fedsim.base.errors import BrokenMessage
from fedsim.transport.messages_pb2 import Order, Reply, Settled


class About(NamedTuple):
    """What each message tells, for it is worked on by a process that knows nothing: the run's name, how many nodes it has, where in the
    app's folder own modules lie, and what a worker's task is made from (JSON)."""

    run: str
    nodes: int
    beside: str
    scenario: bytes

    @property
    def record(self) -> ConfigRecord:
        return ConfigRecord(self._asdict())

    @classmethod
    def of(cls, content: RecordDict) -> "About":
        """The other end of `record`."""
        return cls(**_record(content, "run"))


def _record(content: RecordDict, name: str) -> dict[str, Any]:
    """Raises KeyError where it is not there."""
    return {**content.config_records[name]}


def ordered(about: About, order: Order, settled: Settled, files: Mapping[bytes, Path]) -> RecordDict:
    """An order with its objects; `settled`: what became of earlier replies."""
    told = ConfigRecord({"order": order.SerializeToString(), "settled": settled.SerializeToString()})
    return RecordDict(
        {"run": about.record, "order": told, **{name.hex(): ConfigRecord({"content": file.read_bytes()}) for name, file in files.items()}}
    )


def to_do(content: RecordDict, folder: Path) -> tuple[Order, Settled, dict[bytes, Path]]:
    """The other end of `ordered`: the objects lie in the folder from now on."""
    told, files = _record(content, "order"), dict[bytes, Path]()
    order, settled = Order.FromString(told["order"]), Settled.FromString(told["settled"])
    folder.mkdir(parents=True, exist_ok=True)
    for name in {part.object.hash for part in order.parts}:
        files[name] = folder / name.hex()
        files[name].write_bytes(_record(content, name.hex())["content"])
    return order, settled, files


def answered(replies: Sequence[tuple[Reply, Path | None]]) -> RecordDict:
    """Replies; those with a file have content, one after the other in a value of bytes."""
    content = b"".join(file.read_bytes() for _, file in replies if file)
    return RecordDict({"reply": ConfigRecord({"replies": [reply.SerializeToString() for reply, _ in replies], "content": content})})


def answers(content: RecordDict) -> list[tuple[Reply, bytes]]:
    """The other end of `answered`. Raises BrokenMessage."""
    try:
        told = _record(content, "reply")
        replies = [Reply.FromString(raw) for raw in told["replies"]]
        whole, at, found = bytes(told["content"]), 0, list[tuple[Reply, bytes]]()
        for reply in replies:
            found.append((reply, whole[at : at + reply.object.size]))
            at += reply.object.size
        if at != len(whole):
            raise BrokenMessage("a reply whose content has another size")
    except (DecodeError, KeyError, TypeError) as error:
        raise BrokenMessage("a reply that makes no sense") from error
    return found


def told(facts: Mapping[str, Any]) -> RecordDict:
    """What a node has found."""
    return RecordDict({"facts": ConfigRecord({"facts": json.dumps(facts).encode()})})


def found(content: RecordDict) -> bytes:
    """The other end of `told`. Raises KeyError, TypeError."""
    return bytes(_record(content, "facts")["facts"])
