"""Asking a server how its run stands."""

import json
import secrets
from typing import Any

from fedsim import __version__
from fedsim.base.errors import FedsimError
from fedsim.base.visible import one_line
from fedsim.transport.handler import Refused
from fedsim.transport.identity import WorkerIdentity
from fedsim.transport.messages_pb2 import RUN_OVER, Hello
from fedsim.transport.messages_pb2_grpc import FedsimStub
from fedsim.transport.probe import PATIENCE, explain
from fedsim.transport.wire import DOCTOR, OPTIONS, PROTOCOL


class NoAnswer(FedsimError):
    """The server can't be reached now."""


class Over(Exception):
    """The server said that its run is over."""


class Server:
    """A server that is asked now and then; use as a context."""

    def __init__(self, target: str, identity: WorkerIdentity, patience: float = PATIENCE) -> None:
        import grpc

        self.target, self.identity, self.patience = target, identity, patience
        credentials = identity.credentials()
        options = (*OPTIONS, ("grpc.enable_retries", 0), ("grpc.max_reconnect_backoff_ms", 2000))
        self.channel = grpc.secure_channel(target, credentials, options) if credentials else grpc.insecure_channel(target, options)
        self.hello = Hello(protocol=PROTOCOL, version=__version__, worker=secrets.token_bytes(16), role=DOCTOR)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def state(self) -> dict[str, Any]:
        """What `deploy.board` wrote. Raises NoAnswer, Over, and FedsimError where this machine may not ask."""
        import grpc

        try:
            seen = FedsimStub(self.channel).Watch(self.hello, timeout=self.patience, metadata=self.identity.metadata())
        except grpc.RpcError as error:
            why = explain(self.target, self.identity, self.patience) or one_line(error.details() or error.code().name.lower())
            raise NoAnswer(f"{self.target}: {why}") from None
        if seen.HasField("refusal"):
            if seen.refusal.reason == RUN_OVER:
                raise Over(one_line(seen.refusal.cause))
            raise Refused(seen.refusal)
        found: dict[str, Any] = one_line(json.loads(seen.state))
        if not found:
            raise FedsimError(f"{self.target}: of this run nothing can be watched")
        return found
