"""What a worker among workers does with what its introducer and its own training say."""

import json
import socket
from itertools import count
from pathlib import Path
from time import time
from typing import Any

from fedsim.deploy.peers.mesh import Mesh, Neighbour
from fedsim.transport.messages_pb2 import Order, Reply, Welcome
from fedsim.transport.target import is_loopback, split

PLACES = 20  # bits of a node's number in that of a report


class Peers:
    """Used in the worker's loop. `hands`: what it has beside (`deploy.join`)."""

    def __init__(self, hands: Any, welcome: Welcome, facts: dict[str, Any]) -> None:
        """Begins to listen, and says where in the facts."""
        self.hands, machine, first = hands, hands.machine, min(welcome.nodes)
        self.numbers = (number << PLACES | first for number in count(int(time()) << 12))  # others than before a restart
        self.mesh = Mesh(
            machine.identity, welcome.run, hands.store, hands.identity, welcome.silence, facts["letter"], self._letter
        )
        near = machine.listen or ("127.0.0.1:0" if is_loopback(machine.target) else "0.0.0.0:0")
        host, port = split(self.mesh.listen(near))
        facts["address"] = machine.address or f"{own_address(machine.target) if host in ('0.0.0.0', '::') else host}:{port}"

    def order(self, order: Order) -> None:
        """What the introducer says."""
        said, [job] = json.loads(order.head), order.jobs
        workers = [Neighbour(bytes.fromhex(one["id"]), one["name"], one["address"], tuple(one["nodes"])) for one in said["workers"]]
        self.mesh.open(workers)
        self.hands.tell("peers", {node: place for place, one in enumerate(workers) for node in one.nodes})
        self.hands.reply(Reply(jobs=[job.id]))

    def heard(self, what: str, *arguments: Any) -> None:
        """What training says."""
        match what, *arguments:
            case "letter", name, workers:
                self.mesh.send(Path(name), workers)
            case "report", said:
                self.hands.reply(Reply(jobs=[next(self.numbers)], head=json.dumps(said).encode()))

    def _letter(self, file: Path) -> None:
        self.hands.tell("letter", str(file))


def own_address(target: str) -> str:
    """This machine's address as one sees it from where the target is."""
    family, _, _, _, place = socket.getaddrinfo(*split(target), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(place)
        host: str = probe.getsockname()[0]
        return host
