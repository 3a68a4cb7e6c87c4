"""Which nodes a worker hosts: those it names, or as many as are free."""

import threading
from collections.abc import Callable

from fedsim import __version__
from fedsim.transport.identity import Claim
from fedsim.transport.messages_pb2 import NODE_UNKNOWN, SCENARIO, VERSION, Hello, Refusal, Welcome
from fedsim.transport.nodes import Nodes, parse
from fedsim.transport.wire import DOCTOR


class Lodging:
    """Hands out a run's nodes, with what workers are told of it; they must come in a role."""

    def __init__(self, run: str, scenario: bytes, nodes: int, role: str) -> None:
        self.run, self.scenario, self.nodes, self.role = run, scenario, nodes, role
        self.hosts: dict[int, bytes] = {}  # by node, who has asked for it; so `auto` gives a worker that comes back its own
        self.lives: Callable[[bytes], bool] = lambda worker: True  # is a worker still there, as far as the hub knows?
        self.lock = threading.Lock()

    def welcome(self, hello: Hello, claim: Claim) -> Welcome | Refusal:
        """The nodes that this worker hosts, and the scenario."""
        if hello.version != __version__:
            cause = f"the worker has fedsim {hello.version}, the server {__version__}"
            return Refusal(reason=VERSION, cause=cause, cure="install the same version at both ends")
        if hello.role == DOCTOR:
            return Welcome(run=self.run)
        if hello.role != self.role:
            cause = f"the worker came to {hello.role or 'do nothing'}, and this server's run is to {self.role}"
            return Refusal(
                reason=SCENARIO, cause=cause, cure="`fedsim join --app APPDIR` is for a Flower app, without --app for a scenario"
            )
        try:
            nodes = self._chosen(hello, claim.nodes)
        except ValueError as error:
            return Refusal(reason=NODE_UNKNOWN, cause=str(error), cure=f"this run has nodes 0..{self.nodes - 1}")
        if refusal := claim.refuses(Nodes.of(nodes)):
            return refusal
        with self.lock:
            self.hosts |= dict.fromkeys(nodes, hello.worker)
        return Welcome(run=self.run, scenario=self.scenario, nodes=nodes)

    def _chosen(self, hello: Hello, allowed: Nodes | None) -> list[int]:
        """Raises ValueError for nodes that there are not."""
        named = parse(hello.nodes)
        if named is None:
            with self.lock:
                mine = [node for node, worker in self.hosts.items() if worker == hello.worker]
                taken = {node for node, worker in self.hosts.items() if self.lives(worker)}
                free = [node for node in range(self.nodes) if node not in taken and (allowed is None or node in allowed)]
            if not mine and not free:
                raise ValueError("all nodes have a worker already")
            return sorted(mine or free)
        if other := [part[-1] for part in named.ranges if part[-1] >= self.nodes]:
            raise ValueError(f"there is no node {other[0]}")
        return list(named)
