"""Who may work for a run: the server's side of the handshake."""

import json
from collections.abc import Mapping
from typing import Any

from fedsim.run.runfolder import code_hash
from fedsim.scenario.loader import NOT_THE_QUESTION, Loaded
from fedsim.task.task import Task
from fedsim.transport.lodging import Lodging
from fedsim.transport.messages_pb2 import DATA, SCENARIO, Refusal

MENDING = "start it with the server's data, scenario and code"


class Doorkeeper(Lodging):
    """Hands out nodes and the scenario, and compares what a worker found with what the server has."""

    def __init__(self, loaded: Loaded, task: Task, run: str) -> None:
        scenario = json.dumps({"resolved": loaded.resolved, "hash": loaded.hash, "own": sorted(loaded.own)}).encode()
        super().__init__(run, scenario, task.nodes, "train")
        self.loaded, self.task = loaded, task

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
        if found["data"] != self.task.hash():
            return Refusal(reason=DATA, cause="its data are others than the server's", cure=MENDING)
        return None
