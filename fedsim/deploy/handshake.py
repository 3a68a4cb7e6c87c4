"""Who may work for a run: the server's side of the handshake."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedsim.base.errors import FedsimError
from fedsim.base.rows import model_hash
from fedsim.base.visible import is_folder_name, one_line
from fedsim.deploy.own import labels
from fedsim.run.folders import RunFolder
from fedsim.run.runfolder import code_hash
from fedsim.scenario.loader import NOT_THE_QUESTION, Loaded
from fedsim.task.task import Task
from fedsim.transport.identity import Claim
from fedsim.transport.lodging import Lodging
from fedsim.transport.messages_pb2 import BROKEN, DATA, RUN_FAILED, RUN_OVER, SCENARIO, Hello, Refusal, Welcome

MENDING = "start it with the server's data, scenario and code"
OVER = {"finished": RUN_OVER, "failed": RUN_FAILED}
LONGEST = 100  # signs of a run's name


class Doorkeeper(Lodging):
    """Hands out nodes and the scenario, and compares what a worker found with what the server has."""

    def __init__(self, loaded: Loaded, task: Task, folder: Path, own: dict[int, tuple[int, str]] | None = None) -> None:
        """`folder`: the run's. `own`: of nodes with data of their own, those that are known, how many samples and their hash; others are
        added to it."""
        scenario = {
            "resolved": loaded.resolved,
            "hash": loaded.hash,
            "own": sorted(loaded.own),
            "labels": labels(task),
            "apart": task.apart,
        }
        super().__init__(folder.name, json.dumps(scenario).encode(), task.nodes, "train")
        self.loaded, self.task, self.own, self.runs = loaded, task, own, folder.parent

    def welcome(self, hello: Hello, claim: Claim) -> Welcome | Refusal:
        return super().welcome(hello, claim) if hello.run in ("", self.run) else self._past(hello.run)

    def _past(self, run: str) -> Refusal:
        """For a worker of another run, whose jobs and memories are none of this one's: what became of that."""
        info = dict[str, Any]()
        if is_folder_name(run) and (self.runs / run / "run.json").is_file():
            with suppress(FedsimError):
                info = RunFolder(self.runs / run).info
        if (status := info.get("status")) in OVER:
            return Refusal(reason=OVER[status], cause=over(info))
        cause = f"it works for the run {one_line(run[:LONGEST])}, and this server's is {self.run}"
        return Refusal(reason=SCENARIO, cause=cause, cure="start it again to work for this one")

    def admit(self, session: Any, facts: bytes) -> Refusal | None:
        """None where a worker found what the server has."""
        try:
            return self._compare(session, json.loads(facts))
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            return Refusal(reason=BROKEN, cause="what it says it found makes no sense", cure="use `fedsim join`")

    def _compare(self, session: Any, found: Mapping[str, Any]) -> Refusal | None:
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
        if "init" in found and found["init"] != model_hash(self.task.init):
            cause = f"its first model is another than the introducer's: peers begin with the same one; its torch is {found['torch']}"
            return Refusal(reason=DATA, cause=cause, cure="install the same version of torch at both ends")
        if self.own is None:
            other = found["data"] != self.task.hash()
            return Refusal(reason=DATA, cause="its data are others than the server's", cure=MENDING) if other else None
        counts = found["counts"]
        if len(counts) != len(session.nodes) or not all(isinstance(size, int) and 0 <= size < 1 << 40 for size in counts):
            raise ValueError("no numbers of samples")
        with self.lock:
            for node, size in zip(session.nodes, counts, strict=True):
                if self.own.setdefault(node, (size, found["data"]))[1] != found["data"]:
                    cause = f"the data of node {node} have changed since the run began"
                    return Refusal(reason=DATA, cause=cause, cure="start it with the data of then")
        return None


def over(info: Mapping[str, Any]) -> str:
    """What workers hear of a run at its end."""
    return f"the run is over: {info.get('status')}: {info.get('reason')}"
