from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    PROTOCOL: _ClassVar[Reason]
    VERSION: _ClassVar[Reason]
    TOKEN: _ClassVar[Reason]
    CERTIFICATE: _ClassVar[Reason]
    NODE_TAKEN: _ClassVar[Reason]
    NODE_UNKNOWN: _ClassVar[Reason]
    SCENARIO: _ClassVar[Reason]
    DATA: _ClassVar[Reason]
    RUN_OVER: _ClassVar[Reason]
    FULL: _ClassVar[Reason]
    BROKEN: _ClassVar[Reason]
    NO_ROOM: _ClassVar[Reason]
    RUN_FAILED: _ClassVar[Reason]
REASON_UNSPECIFIED: Reason
PROTOCOL: Reason
VERSION: Reason
TOKEN: Reason
CERTIFICATE: Reason
NODE_TAKEN: Reason
NODE_UNKNOWN: Reason
SCENARIO: Reason
DATA: Reason
RUN_OVER: Reason
FULL: Reason
BROKEN: Reason
NO_ROOM: Reason
RUN_FAILED: Reason

class FromWorker(_message.Message):
    __slots__ = ("hello", "ready", "reply", "beat", "bye")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    ready: Ready
    reply: Reply
    beat: Beat
    bye: Bye
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., reply: _Optional[_Union[Reply, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ..., bye: _Optional[_Union[Bye, _Mapping]] = ...) -> None: ...

class FromServer(_message.Message):
    __slots__ = ("welcome", "refusal", "admitted", "order", "cancel", "settled", "beat", "bye")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    refusal: Refusal
    admitted: Admitted
    order: Order
    cancel: Cancel
    settled: Settled
    beat: Beat
    bye: Bye
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., admitted: _Optional[_Union[Admitted, _Mapping]] = ..., order: _Optional[_Union[Order, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., settled: _Optional[_Union[Settled, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ..., bye: _Optional[_Union[Bye, _Mapping]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("reason", "cause", "cure")
    REASON_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    CURE_FIELD_NUMBER: _ClassVar[int]
    reason: Reason
    cause: str
    cure: str
    def __init__(self, reason: _Optional[_Union[Reason, str]] = ..., cause: _Optional[str] = ..., cure: _Optional[str] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "version", "worker", "nodes", "run", "role", "host")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    worker: bytes
    nodes: str
    run: str
    role: str
    host: str
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., worker: _Optional[bytes] = ..., nodes: _Optional[str] = ..., run: _Optional[str] = ..., role: _Optional[str] = ..., host: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("run", "session", "scenario", "nodes", "silence")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SCENARIO_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    SILENCE_FIELD_NUMBER: _ClassVar[int]
    run: str
    session: bytes
    scenario: bytes
    nodes: _containers.RepeatedScalarFieldContainer[int]
    silence: float
    def __init__(self, run: _Optional[str] = ..., session: _Optional[bytes] = ..., scenario: _Optional[bytes] = ..., nodes: _Optional[_Iterable[int]] = ..., silence: _Optional[float] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("facts",)
    FACTS_FIELD_NUMBER: _ClassVar[int]
    facts: bytes
    def __init__(self, facts: _Optional[bytes] = ...) -> None: ...

class Admitted(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Object(_message.Message):
    __slots__ = ("hash", "size")
    HASH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    hash: bytes
    size: int
    def __init__(self, hash: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("name", "dtype", "shape", "object", "each")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    EACH_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    object: Object
    each: bool
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., object: _Optional[_Union[Object, _Mapping]] = ..., each: _Optional[bool] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "node", "turn", "round", "version")
    ID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    id: int
    node: int
    turn: int
    round: int
    version: int
    def __init__(self, id: _Optional[int] = ..., node: _Optional[int] = ..., turn: _Optional[int] = ..., round: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...

class Order(_message.Message):
    __slots__ = ("kind", "jobs", "parts", "head", "done", "took")
    KIND_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOOK_FIELD_NUMBER: _ClassVar[int]
    kind: str
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    head: bytes
    done: _containers.RepeatedScalarFieldContainer[int]
    took: float
    def __init__(self, kind: _Optional[str] = ..., jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., head: _Optional[bytes] = ..., done: _Optional[_Iterable[int]] = ..., took: _Optional[float] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("jobs", "object", "head", "down", "work", "waited")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    DOWN_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    WAITED_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedScalarFieldContainer[int]
    object: Object
    head: bytes
    down: float
    work: float
    waited: float
    def __init__(self, jobs: _Optional[_Iterable[int]] = ..., object: _Optional[_Union[Object, _Mapping]] = ..., head: _Optional[bytes] = ..., down: _Optional[float] = ..., work: _Optional[float] = ..., waited: _Optional[float] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, jobs: _Optional[_Iterable[int]] = ...) -> None: ...

class Settled(_message.Message):
    __slots__ = ("kept", "gone")
    KEPT_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    kept: _containers.RepeatedScalarFieldContainer[int]
    gone: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, kept: _Optional[_Iterable[int]] = ..., gone: _Optional[_Iterable[int]] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ("sent", "echo", "held", "wall")
    SENT_FIELD_NUMBER: _ClassVar[int]
    ECHO_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    WALL_FIELD_NUMBER: _ClassVar[int]
    sent: float
    echo: float
    held: float
    wall: float
    def __init__(self, sent: _Optional[float] = ..., echo: _Optional[float] = ..., held: _Optional[float] = ..., wall: _Optional[float] = ...) -> None: ...

class Bye(_message.Message):
    __slots__ = ("reason", "drained", "failed")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    reason: str
    drained: bool
    failed: bool
    def __init__(self, reason: _Optional[str] = ..., drained: _Optional[bool] = ..., failed: _Optional[bool] = ...) -> None: ...

class Wanted(_message.Message):
    __slots__ = ("hash", "offset")
    HASH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    hash: bytes
    offset: int
    def __init__(self, hash: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("object", "offset", "data", "check", "jobs")
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    object: Object
    offset: int
    data: bytes
    check: int
    jobs: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, object: _Optional[_Union[Object, _Mapping]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., check: _Optional[int] = ..., jobs: _Optional[_Iterable[int]] = ...) -> None: ...

class Committed(_message.Message):
    __slots__ = ("offset", "refusal")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    offset: int
    refusal: Refusal
    def __init__(self, offset: _Optional[int] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class Seen(_message.Message):
    __slots__ = ("state", "refusal")
    STATE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    state: bytes
    refusal: Refusal
    def __init__(self, state: _Optional[bytes] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...
