"""What a run is, as run.json says it, and what of that the bits of its results depend on."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.base.rows import model_hash
from fedsim.federation.federation import Federation
from fedsim.method.privacy import Account
from fedsim.run.runfolder import code_hash
from fedsim.scenario.loader import Loaded


def facts_of(loaded: Loaded, fed: Federation, evaluated: Sequence[int | None], target: float | None) -> dict[str, Any]:
    """What run.json says of a run from its start; `evaluated` each so many rounds, or ticks."""
    head = {"name": loaded.scenario.name, "label": loaded.label, "variant": loaded.variant, "seed": loaded.seed}
    head |= {"changed": dict(loaded.changed), "hash": loaded.hash, "code": code_hash(loaded.own), "target": target}
    groups = {name: [ids.start, ids.stop] for name, ids in fed.task.groups.items()}
    task = {
        "nodes": fed.nodes,
        "peers": fed.schedule.peers,
        "parameters": fed.task.layout.size,
        "data": fed.task.hash(),
        "groups": groups,
        "tick": fed.nature.per_second,
    }
    account = fed.companion(Account)
    head |= {"evaluated": [*evaluated], "noise": account.noise if account else None}
    head |= {"weights": model_hash(fed.task.init[None])} if loaded.scenario.task.weights else {}
    head |= {"attackers": liars.about} if (liars := fed.nature.liars) else {}
    limits = {"concurrency": fed.schedule.concurrency_limit(fed.nodes), "max_staleness": fed.schedule.staleness_limit()}
    return head | fed.worker.about | task | limits


def log_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Whose log of messages a log is, of a run with these facts."""
    return {word: facts[name] for word, name in (("scenario", "hash"), ("seed", "seed"), ("data", "data"), ("parameters", "parameters"))}


SAME = (
    "version",
    "hash",
    "seed",
    "data",
    "weights",
    "parameters",
    "tick",
    "code",
    "device",
    "plan",
    "threads",
    "chunk",
    "precision",
    "noise",
)
PACKAGES = ("torch", "numpy")


def identity(info: dict[str, Any]) -> dict[str, Any]:
    """Of a run.json: all that the bits of a result depend on."""
    return {name: info.get(name) for name in SAME} | {name: info.get("versions", {}).get(name) for name in PACKAGES}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`seed was 0, is 1`, for each entry of two identities that differs."""
    words = {"version": "fedsim's version", "data": "the data's hash", "hash": "the scenario's hash", "code": "the hash of own code"}
    words |= {"weights": "the first model's hash"}
    words |= {"tick": "ticks a second", "noise": "the noise that `privacy` needs for the planned end"}
    return [f"{words.get(name, name)} was {old.get(name)}, is {new.get(name)}" for name in new if old.get(name) != new.get(name)]
