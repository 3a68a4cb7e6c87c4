"""What a worker among workers does with what its introducer and its own training say."""

import json
import socket
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from time import time
from typing import Any

from fedsim.base.errors import HostError
from fedsim.deploy.peers.door import Neighbour
from fedsim.deploy.peers.mesh import Mesh
from fedsim.transport.messages_pb2 import Object, Order, Reply, Welcome
from fedsim.transport.target import is_loopback, split

PLACES = 20  # bits of a node's number in that of a report


class Peers:
    """Used in the worker's loop. `hands`: what it has beside (`deploy.join`)."""

    def __init__(self, hands: Any, welcome: Welcome, facts: dict[str, Any]) -> None:
        """Begins to listen, and says where in the facts."""
        self.hands, machine, first = hands, hands.machine, min(welcome.nodes)
        self.numbers = (number << PLACES | first for number in count(int(time()) << 12))  # others than before a restart
        self.mesh = Mesh(machine.identity, welcome.run, hands.store, hands.identity, welcome.silence, facts["letter"], self)
        near = machine.listen or ("127.0.0.1:0" if is_loopback(machine.target) else "0.0.0.0:0")
        host, port = split(self.mesh.listen(near))
        self.busy = False  # training goes on, whoever looks on
        self.relays: dict[int, bytes] = {}  # sealed letters on their way to the introducer, by the number of the report
        facts |= self.mesh.seals.shown
        facts["address"] = machine.address or f"{own_address(machine.target) if host in ('0.0.0.0', '::') else host}:{port}"

    def order(self, order: Order, paths: Mapping[bytes, Path]) -> None:
        """What the introducer says."""
        said, [job] = json.loads(order.head), order.jobs
        self.hands.reply(Reply(jobs=[job.id]))
        match order.kind:
            case "peers":
                book = [Neighbour.of(one) for one in said["workers"]]
                self.mesh.open(book)
                self.busy = True
                self.hands.tell("peers", {node: place for place, one in enumerate(book) for node in one.nodes})
            case "suspect":
                self.mesh.shut(said["nodes"])
                self.hands.tell("suspect", job.id, said["nodes"])
            case "epoch":
                gone, forward = ({int(node): value for node, value in said[name].items()} for name in ("gone", "forward"))
                self.hands.say(f"without nodes {', '.join(map(str, gone))} from now on")
                self.hands.tell("epoch", gone, forward)
            case "verdict":
                self.hands.tell("verdict", said["place"], said["why"])
            case "relay":
                [(name, sealed)] = paths.items()
                self.mesh.relayed(bytes.fromhex(said["from"]), said["number"], sealed)
                self.hands.store.drop(name)
            case "arrived":
                self.mesh.arrived(self.mesh.lines[bytes.fromhex(said["worker"])], [said["number"]])
            case "out":
                self.hands.broken.set_exception(HostError("the other workers went on without this one, which was silent for too long"))

    def heard(self, what: str, *arguments: Any) -> None:
        """What training says."""
        match what, *arguments:
            case "letter", name, workers:
                self.mesh.send(Path(name), workers)
            case "broken", place, why:
                self.hands.say(f"{self.mesh.order[place].name}: {why}")
                self.silent(self.mesh.order[place].id)
            case "report", said:
                self.busy = self.busy and not {"over", "failed"} & {*said}
                self.hands.reply(Reply(jobs=[next(self.numbers)], head=json.dumps(said).encode()))

    # What the mesh says

    def letter(self, file: Path) -> None:
        """One has come."""
        self.hands.tell("letter", str(file))

    def arrived(self, place: int) -> None:
        """One has arrived at a worker."""
        self.hands.tell("arrived", place)

    def silent(self, worker: bytes) -> None:
        """Nothing is heard of a worker."""
        self.hands.reply(Reply(jobs=[next(self.numbers)], head=json.dumps({"silent": worker.hex()}).encode()))

    def relay(self, worker: bytes, number: int, sealed: Object) -> None:
        """To a worker over the introducer."""
        report = next(self.numbers)
        self.relays[report] = sealed.hash
        head = json.dumps({"relay": worker.hex(), "number": number}).encode()
        self.hands.reply(Reply(jobs=[report], object=sealed, head=head), self.hands.store.path(sealed.hash))

    def settled(self, reports: Iterable[int]) -> None:
        """The introducer has these."""
        for report in reports:
            if name := self.relays.pop(report, None):
                self.hands.store.drop(name)


def own_address(target: str) -> str:
    """This machine's address as one sees it from where the target is."""
    family, _, _, _, place = socket.getaddrinfo(*split(target), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(place)
        host: str = probe.getsockname()[0]
        return host
