"""All that fedsim uses of Flower's private names, read and tested with flwr 1.41 and 1.42; nowhere else does one stand.

`flwr.app.message.make_message` and `remove_content_from_message`, `Metadata.__dict__["_message_id"]`, `flwr.common.constant`,
`flwr.common.serde` and `serde_utils`, `flwr.proto`, `flwr.supercore.constant`, `flwr.supercore.run`, `flwr.supercore.task_identity`,
`deflate` of messages and records and `Array.slice_array`, `ServerApp._main`, `flwr.serverapp.strategy.strategy_utils.sleep`.

On the wire a message's `created_at` is its age in seconds: clocks of server and worker may differ.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache
from random import Random
from time import time
from typing import Any

from flwr.app import Array, ArrayRecord, Error, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_from_proto, recorddict_to_proto
from flwr.common.serde_utils import metadata_from_proto, metadata_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import Metadata as MetadataProto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import strategy_utils
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import DecodeError

from fedsim.base.errors import BrokenMessage

SERVER = SUPERLINK_NODE_ID
UNKNOWN, LOAD, RAISED, EXPIRED, REPLY_EXPIRED, NODE_GONE, CRASHED = (
    ErrorCode.UNKNOWN,
    ErrorCode.LOAD_CLIENT_APP_EXCEPTION,
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
)


def identify(run: int, node: int) -> None:
    """Says who this process is; without it no `Message` can be made."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run, run, node


def new_run(number: int, name: str, version: str, config: dict[str, bool | int | float | str]) -> Run:
    """Facts of a run of the app `publisher/name`."""
    run = Run.create_empty(number)
    run.fab_id, run.fab_version, run.override_config = name, version, dict(config)
    return run


def number(message: Message, name: str) -> None:
    """Gives a message its id."""
    message.metadata.__dict__["_message_id"] = name


def bare(message: Message) -> Message:
    """The message without its content; its metadata are the same object."""
    return remove_content_from_message(message)


def packed(record: RecordDict) -> bytes:
    """Raises what protobuf does for 2 GiB and more."""
    return bytes(recorddict_to_proto(record).SerializeToString(deterministic=True))


def unpacked(data: bytes) -> RecordDict:
    return recorddict_from_proto(RecordDictProto.FromString(data))


def head(message: Message) -> bytes:
    """All of a message but its content."""
    proto = metadata_to_proto(message.metadata)
    proto.created_at = time() - message.metadata.created_at
    return bytes(proto.SerializeToString())


def message(head: bytes, content: bytes, since: float) -> Message:
    """The message whose head came so many seconds ago."""
    proto = MetadataProto.FromString(head)
    proto.created_at = time() - proto.created_at - since
    return make_message(metadata_from_proto(proto), unpacked(content))


def answer(reply: Message) -> bytes:
    """A reply, whole; no two are equal."""
    return bytes(message_to_proto(reply).SerializeToString())


def told(data: bytes) -> Message:
    """The reply that `answer` packed."""
    return message_from_proto(MessageProto.FromString(data))


def answered(data: bytes, to: Message, name: str) -> Message:
    """A reply that came just now. What it says of itself but for its content and time to live is not believed. Raises BrokenMessage."""
    try:
        said = message_from_proto(MessageProto.FromString(data))
        told = said.error if said.has_error() else said.content
    except (DecodeError, ValueError, TypeError) as error:
        raise BrokenMessage("a reply that makes no sense") from error
    reply = Message(told, reply_to=to, ttl=min(said.metadata.ttl, to.metadata.created_at + to.metadata.ttl - time()))
    number(reply, name)
    return reply


def failed(to: Message, code: int, reason: str) -> Message:
    """The reply that says what went wrong."""
    reply = Message(Error(code, reason), reply_to=to)
    number(reply, f"{to.metadata.message_id}.{code}")
    return reply


def unknown(name: str, run: int) -> Message:
    """What Flower replies for a message that has expired, was answered before, or never was."""
    about = Metadata(run, f"{name}.{EXPIRED}", SERVER, SERVER, name, "", time(), 0.0, SYSTEM_MESSAGE_TYPE)
    about.delivered_at = ""
    return make_message(about, error=Error(EXPIRED, "the message has expired, was answered before or was never sent"))


def copied(content: RecordDict) -> RecordDict:
    """Records of its own; their arrays, which nobody changes in place, are shared."""
    return RecordDict({name: record.copy() for name, record in content.items()})


def delivered(message: Message) -> Message:
    """The message as a node has it: made just now, with metadata and records of its own."""
    about = copy(message.metadata)
    about.created_at = time()
    return make_message(about, copied(message.content))


def replied(reply: Message, to: Message) -> Message:
    """A ClientApp's reply as the ServerApp has it: with records of its own, and nothing that it says of itself but those."""
    return Message(reply.error if reply.has_error() else copied(reply.content), reply_to=to)


def size(message: Message) -> int:
    """Bytes of a message as Flower sends it: of all its objects with their heads, without what HTTP adds, and without running it through
    a serializer. Objects that are equal, which Flower would send once, count each."""
    if not message.has_content():
        return len(message.deflate())
    about = message.metadata
    key: tuple[int | str | None, ...] = (about.run_id, about.src_node_id, about.dst_node_id, about.src_task_id, about.dst_task_id)
    key += (about.message_type, len(about.group_id.encode()), len(about.reply_to_message_id))
    if key not in _heads:  # times are of a fixed length
        _heads[key] = len(bare(message).deflate())
    return _heads[key] + _names_size(tuple(message.content), "records") + sum(map(_record_size, message.content.values()))


_heads: dict[tuple[int | str | None, ...], int] = {}


def _record_size(record: Any) -> int:
    if not isinstance(record, ArrayRecord):
        return len(record.deflate())
    return _names_size(tuple(record), "arrays") + sum(_array_size(a.dtype, tuple(a.shape), a.stype, len(a.data)) for a in record.values())


@cache
def _names_size(names: tuple[str, ...], of: str) -> int:
    """What a record adds to its arrays, or a content to its records: names and hashes."""
    if of == "records":
        return len(RecordDict({name: MetricRecord({"n": place}) for place, name in enumerate(names)}).deflate())
    return len(ArrayRecord({name: Array("u1", (1,), "n", bytes(f"{place}", "ascii")) for place, name in enumerate(names)}).deflate())


@cache
def _array_size(dtype: str, shape: tuple[int, ...], stype: str, length: int) -> int:
    """An array's own object, and the chunks in which its bytes travel."""
    array = Array(dtype, shape, stype, Random(0).randbytes(length))
    return len(array.deflate()) + sum(len(chunk.deflate()) for _, chunk in array.slice_array())


def has_main(server: ServerApp) -> bool:
    """Whether a ServerApp has a `main`; else it is made of `server_fn`, as before Flower 1.21."""
    return server._main is not None


@contextmanager
def strategies_sleep(sleep: Callable[[float], None]) -> Iterator[None]:
    """Meanwhile Flower's strategies, which sleep while nodes are too few, do so by this."""
    usual = vars(strategy_utils)["sleep"]
    vars(strategy_utils)["sleep"] = sleep
    try:
        yield
    finally:
        vars(strategy_utils)["sleep"] = usual
