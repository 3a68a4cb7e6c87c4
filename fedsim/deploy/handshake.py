"""Who may work for a run: the server's side of the handshake."""

import json
import threading
from collections.abc import Mapping
from typing import Any

from fedsim import __version__
from fedsim.base.rows import model_hash
from fedsim.deploy.own import labels
from fedsim.run.runfolder import code_hash
from fedsim.scenario.loader import NOT_THE_QUESTION, Loaded
from fedsim.task.task import Task
from fedsim.transport.identity import Claim
from fedsim.transport.messages_pb2 import DATA, NODE_UNKNOWN, SCENARIO, VERSION, Hello, Refusal, Welcome
from fedsim.transport.nodes import Nodes, parse
from fedsim.transport.wire import DOCTOR

MENDING = "start it with the server's data, scenario and code"


class Doorkeeper:
    """Hands out nodes and the scenario, and compares what a worker found with what the server has."""

    def __init__(self, loaded: Loaded, task: Task, run: str, own: dict[int, tuple[int, str]] | None = None) -> None:
        """`own`: of nodes with data of their own, those that are known, how many samples and their hash; others are added to it."""
        self.loaded, self.task, self.run, self.own = loaded, task, run, own
        scenario = {"resolved": loaded.resolved, "hash": loaded.hash, "own": sorted(loaded.own), "labels": labels(task)}
        self.scenario = json.dumps(scenario).encode()
        self.hosts: dict[int, bytes] = {}  # by node, who has asked for it; so `auto` gives a worker that comes back its own
        self.lock = threading.Lock()

    def welcome(self, hello: Hello, claim: Claim) -> Welcome | Refusal:
        """The nodes that this worker hosts, and the scenario."""
        if hello.version != __version__:
            cause = f"the worker has fedsim {hello.version}, the server {__version__}"
            return Refusal(reason=VERSION, cause=cause, cure="install the same version at both ends")
        if hello.role == DOCTOR:
            return Welcome(run=self.run)
        allowed: Nodes | None = claim.nodes
        try:
            nodes = self._chosen(hello, allowed)
        except ValueError as error:
            return Refusal(reason=NODE_UNKNOWN, cause=str(error), cure=f"this run has nodes 0..{self.task.nodes - 1}")
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
                free = [node for node in range(self.task.nodes) if node not in self.hosts and (allowed is None or node in allowed)]
            if not mine and not free:
                raise ValueError("all nodes have a worker already")
            return sorted(mine or free)
        if other := [part[-1] for part in named.ranges if part[-1] >= self.task.nodes]:
            raise ValueError(f"there is no node {other[0]}")
        return list(named)

    def admit(self, session: Any, facts: bytes) -> Refusal | None:
        """None where a worker found what the server has."""
        found: Mapping[str, Any] = json.loads(facts)
        if "refused" in found:
            return Refusal(reason=SCENARIO, cause=found["refused"], cure=MENDING)
        if found["hash"] != self.loaded.hash:
            mine, theirs = self.loaded.flat, found["settings"]
            keys = [key for key in mine | theirs if mine.get(key) != theirs.get(key) and key.split(".")[0] not in NOT_THE_QUESTION]
            key = keys[0] if keys else "the scenario"
            cause = f"`{key}` is {theirs.get(key, 'not set')} there and {mine.get(key, 'not set')} here"
            return Refusal(reason=SCENARIO, cause=cause, cure=MENDING)
        if found["code"] != code_hash(self.loaded.own):
            return Refusal(reason=SCENARIO, cause=f"own code differs ({', '.join(sorted(self.loaded.own))})", cure=MENDING)
        if found["parameters"] != self.task.layout.size:
            cause = f"its model has {found['parameters']:,} parameters, the server's {self.task.layout.size:,}"
            return Refusal(reason=DATA, cause=cause, cure=MENDING)
        if found.get("init") not in (None, model_hash(self.task.init)):
            cause = f"its first model is another than the introducer's: peers begin with the same one; its torch is {found['torch']}"
            return Refusal(reason=DATA, cause=cause, cure="install the same version of torch at both ends")
        if self.own is None:
            other = found["data"] != self.task.hash()
            return Refusal(reason=DATA, cause="its data are others than the server's", cure=MENDING) if other else None
        with self.lock:
            for node, size in zip(session.nodes, found["counts"], strict=True):
                if self.own.setdefault(node, (size, found["data"]))[1] != found["data"]:
                    cause = f"the data of node {node} have changed since the run began"
                    return Refusal(reason=DATA, cause=cause, cure="start it with the data of then")
        return None
