"""What a worker would meet at a server: the layers of `probe`, and above them gRPC, a round trip, fedsim's handshake, and the clock."""

import secrets
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

from fedsim import __version__
from fedsim.base.text import duration
from fedsim.base.visible import one_line
from fedsim.transport import messages_pb2 as messages
from fedsim.transport.identity import WorkerIdentity
from fedsim.transport.probe import PATIENCE, Finding, layers
from fedsim.transport.wire import DOCTOR, OPTIONS, PROTOCOL, SERVICE, TIME

SESSION = f"/{SERVICE}/Session"
HEALTH = "/grpc.health.v1.Health/Check"
FOREIGN = "another gRPC server holds the port; check it against `deploy.listen` of the scenario"


def examine(target: str, identity: WorkerIdentity, patience: float = PATIENCE) -> Iterator[Finding]:
    """A finding a layer, from the name to fedsim's answer; the first failure is the last."""
    for finding in layers(target, identity, patience):
        yield finding
        if not finding.good:
            return
    import grpc

    options = (*OPTIONS, ("grpc.enable_retries", 0))
    credentials = identity.credentials()
    made = grpc.secure_channel(target, credentials, options) if credentials else grpc.insecure_channel(target, options)
    with made as channel:
        try:
            yield from _calls(channel, identity, patience)
        except grpc.RpcError as error:
            yield Finding("grpc", False, one_line(f"{error.code().name}: {error.details()}"), "see the server's log")


def _calls(channel: Any, identity: WorkerIdentity, patience: float) -> Iterator[Finding]:
    import grpc
    from grpc_health.v1 import health_pb2 as health

    ask = channel.unary_unary(HEALTH, health.HealthCheckRequest.SerializeToString, health.HealthCheckResponse.FromString)
    trips = []
    try:
        for _ in range(5):
            begun = time.monotonic()
            answer = ask(health.HealthCheckRequest(), timeout=patience, metadata=identity.metadata())
            trips.append(time.monotonic() - begun)
        state = health.HealthCheckResponse.ServingStatus.Name(answer.status)
        yield Finding("grpc", True, f"its health is {state}; {duration(min(trips))} for a call, the best of {len(trips)}")
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise
        yield Finding("grpc", True, "a gRPC server, without the health service")
    yield from _answer(channel, identity, patience)


def _answer(channel: Any, identity: WorkerIdentity, patience: float) -> Iterator[Finding]:
    """What the server says to a Hello that asks for no nodes."""
    import grpc

    said: SimpleQueue[Any] = SimpleQueue()
    said.put(messages.FromWorker(hello=messages.Hello(protocol=PROTOCOL, version=__version__, worker=secrets.token_bytes(16), role=DOCTOR)))
    open_session = channel.stream_stream(SESSION, messages.FromWorker.SerializeToString, messages.FromServer.FromString)
    call = open_session(iter(said.get, None), timeout=patience, metadata=identity.metadata())
    try:
        answer = next(call)
        said.put(messages.FromWorker(bye=messages.Bye(reason="only asked", drained=True)))
        for _ in call:
            pass
    except StopIteration:
        yield Finding("fedsim", False, "the server ended the session without a word", "see the server's log")
        return
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise
        yield Finding("fedsim", False, f"the server has no service {SERVICE}", FOREIGN)
        return
    finally:
        said.put(None)
    if answer.HasField("refusal"):
        no = answer.refusal
        yield Finding("fedsim", False, one_line(f"{messages.Reason.Name(no.reason).lower()}: {no.cause}"), one_line(no.cure))
        return
    yield Finding("fedsim", True, one_line(f"welcome to run {answer.welcome.run or '-'}"))
    yield from _clock(dict(call.initial_metadata() or ()).get(TIME))


def _clock(theirs: Any) -> Iterator[Finding]:
    try:
        ahead = float(theirs) - time.time()
    except (TypeError, ValueError):
        return
    what = "the clocks agree" if abs(ahead) < 1 else f"the server's is {duration(abs(ahead))} {'ahead' if ahead > 0 else 'behind'}"
    yield Finding("clock", True, f"{what}; only the dates of certificates depend on it")
