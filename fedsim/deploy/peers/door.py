"""Who may come in at a worker: the other workers of its run, each as those nodes that the introducer told of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedsim.transport.identity import Claim
from fedsim.transport.messages_pb2 import CERTIFICATE, FULL, NODE_UNKNOWN, Hello, Refusal, Welcome
from fedsim.transport.nodes import Nodes

ROLE = "peer"


@dataclass(frozen=True)
class Neighbour:
    """A worker as the introducer tells of it. `name`: in its certificate."""

    id: bytes
    name: str
    address: str
    nodes: tuple[int, ...]
    key: Mapping[str, str] = field(default_factory=dict)  # with which letters to it are sealed, see `sealed`

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Neighbour":
        """From the introducer's book."""
        return cls(bytes.fromhex(told["id"]), told["name"], told["address"], tuple(told["nodes"]), told["key"])


class Door:
    """Lets the workers of the run in, as those they are."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.known: dict[bytes, Neighbour] = {}

    def welcome(self, hello: Hello, claim: Claim) -> Welcome | Refusal:
        """The worker's nodes."""
        if not self.known:
            return Refusal(reason=FULL, cause="nobody has been introduced yet")
        who = self.known.get(hello.worker)
        if who is None or hello.role != ROLE:
            return Refusal(reason=NODE_UNKNOWN, cause="a worker that the introducer does not know", cure="join at the introducer")
        if claim.nodes is not None and (beyond := Nodes.of(who.nodes).without(claim.nodes)):
            return Refusal(reason=CERTIFICATE, cause=f"the certificate of `{claim.name}` is not for nodes {beyond}")
        return Welcome(run=self.run, nodes=who.nodes)

    def admit(self, session: Any, facts: bytes) -> None:
        """Nothing is to be compared: the introducer did."""
