"""Every setting of a scenario with values at and beyond its ends, each in a tiny scenario of its own, as words of a command line."""

from collections.abc import Iterator
from dataclasses import MISSING
from typing import get_args, get_origin

from fedsim.scenario.catalog import slots
from fedsim.scenario.leaves import options, unit
from fedsim.scenario.parts import Key, candidates, keys_of, per_node, settings_of, slot_of, top_keys
from fedsim.settings.choice import Choice
from fedsim.settings.part import Part
from fedsim.settings.values import Count, Every

TINY = """task: {data: {name: gaussians, samples: 40, features: 3}, partition: {name: iid, nodes: 4}, model: logistic}
strategy: fedavg
train: {batch: 8}
world: {compute: {job: 1 s}}
engine: {plan: looped}
evaluate: {metrics: [loss]}
stop: {rounds: 1}
"""
PLACES = {  # where a part of a slot stands, with `{}` for it, where that is not its first place in the tree of settings
    "metric": "evaluate.metrics=[loss, {}]",
    "shift": "task.shift=[{}]",
    "augment": "task.augment=[{}]",
    "codec": "uplink={}",
    "curve": "train.lr={}",
    "spread": "world.network.latency={}",
    "topology": "schedule={{name: gossip, topology: {}}}",
    "scheme": "strategy={{name: gradient_coding, scheme: {}}}",
    "discount": "strategy={{name: fedbuff, discount: {}}}",
    "average": "strategy={{name: fedavg, average: {}}}",
    "attack": "strategy={{name: adversarial, attack: {}}}",
    "sampling": "schedule={{name: rounds, sampling: {}}}",
    "placing": "schedule={{name: hierarchy, edges: 2, nodes: {}}}",
    "trace": "world.compute.trace={}",
    "jitter": "world.compute.jitter={}",
    "bursts": "world.compute.bursts={}",
    "packet_loss": "world.network={{up: 1 MB/s, loss: {}}}",
    "loss": "task.loss={}",
}
BESIDE = {  # settings that a part can't do without
    "topology": ["strategy=dsgd"],
    "attackers": ["strategy={name: fedavg, average: median}"],
    "pairwise": ["strategy=dsgd"],
    "gossip": ["strategy=dsgd"],
    "leakage": ["stop.rounds=1"],
    "spam": ["train.optimizer=adam", "train.state=keep"],
}
NEEDED = {"parts": "[ring, ring]", "switch": "[2 rounds]", "pair": "[0, 1]", "inner": "none", "window": "3", "nodes": "1"}
NUMBERS = ["0", "-1", "1e300", "1e29", "1e-300", "nan", "inf", "0.5"]
WHOLE = ["0", "-1", "1", "3", "100000", "999999999999", "1000000000000000000000"]
QUANTITIES = {
    "time": ["0 s", "1e-300 s", "1e-9 s", "0.333333333333333 s", "3000 d", "50000 d", "1e9 d", "-1 s", "nan"],
    "rate": ["0 B/s", "1e-300 B/s", "1 B/s", "1e18 B/s", "1e300 GB/s"],
    "bytes": ["0 B", "1 B", "1000000000 GB", "1e300 GB"],
    "share": ["0", "1", "1e-300", "100 %", "2", "nan"],
    "power": ["0 W", "1e-300 W", "1e9 W", "1e300 W"],
}
SPREADS = [
    "{{name: log_normal, median: {}, sigma: 50}}",
    "{{name: pareto, least: {}, shape: 0.001}}",
    "{{name: zipf, most: {}, exponent: 1e29}}",
    "{{name: uniform, from: {}, to: {}}}",
    "[{}, {}, {}, {}]",
    "[]",
]


def texts(key: Key) -> list[str]:
    """Values at and beyond the ends of a setting's type."""
    found = []
    inner = per_node(key)
    if inner is not None:
        found += (single := texts(inner)) + [
            one.replace("{}", value).replace("{{", "{").replace("}}", "}") for one in SPREADS for value in single[::2]
        ]
    for kind in options(key.kind):
        measure, base = unit(kind), slot_of(kind)
        if kind is int:
            found += WHOLE
        elif kind is float:
            found += NUMBERS
        elif measure:
            found += QUANTITIES[measure]
        elif kind is Every:
            found += ["0 s", "1e-300 s", "1e-9 s", "50000 d", "0 rounds", "999999999999999 rounds"]
        elif kind is Count:
            found += ["0", "1", "1e-300", "999999999999999999999", "at most 999999999999999999999", "nan"]
        elif kind is Choice:
            found += ["0", "9", "0..99999999999", "1e-300", "nobody"]
        elif kind is str:
            found += ["''", "nan"]
        elif get_origin(kind) is tuple:
            found += ["[]", *(f"[{text}]" for text in texts(Key(key.name, get_args(kind)[0], limits=key.limits)))]
        elif base is not None and base.bare[0]:
            found += NUMBERS
    return list(dict.fromkeys(found))


def needed(key: Key) -> str:
    """An ordinary value of a setting that has to be written."""
    kind = key.bare if per_node(key) is None else per_node(key).bare  # type: ignore[union-attr]
    if key.name in NEEDED:
        return NEEDED[key.name]
    if get_origin(kind) is tuple:
        return "[1]"
    return {"time": "1 s", "share": "0.5", "rate": "1 MB/s"}.get(unit(kind) or "", "1")


def written(part: type[Part], name: str, text: str) -> str:
    """A part with one setting, and those that it needs."""
    others = {other: needed(key) for other, key in keys_of(part).items() if key.default is MISSING and other != name}
    return "{" + ", ".join(f"{one}: {value}" for one, value in {"name": part.name, **others, name: text}.items()) + "}"


def cases() -> Iterator[tuple[str, list[str]]]:
    """(dotted setting, words of a command line) for each value of each setting."""
    for path, key in _plain(top_keys(None), ""):
        for text in texts(key):
            yield path, [f"{path}={text}"]
    homes = dict(_homes(top_keys(None), ""))
    for slot, base in slots().items():
        for part in candidates(base).values():
            for name, key in keys_of(part).items():
                for text in texts(key):
                    yield f"{slot}.{part.name}.{name}", [*_beside(slot, part.name), _put(slot, homes, written(part, name, text))]


def _beside(slot: str, name: str) -> list[str]:
    return BESIDE.get(name, BESIDE.get(slot, []))


def _put(slot: str, homes: dict[str, str], part: str) -> str:
    return PLACES[slot].replace("{{", "{").replace("}}", "}").replace("{}", part) if slot in PLACES else f"{homes[slot]}={part}"


def _plain(keys: dict[str, Key], path: str) -> Iterator[tuple[str, Key]]:
    for name, key in keys.items():
        if (group := settings_of(key.kind)) is not None:
            yield from _plain(keys_of(group), f"{path}{name}.")
        elif name not in ("smoke", "track", "sweep"):
            yield f"{path}{name}", key


def _homes(keys: dict[str, Key], path: str) -> Iterator[tuple[str, str]]:
    for name, key in keys.items():
        if (group := settings_of(key.kind)) is not None:
            yield from _homes(keys_of(group), f"{path}{name}.")
        elif (base := slot_of(key.kind)) is not None:
            yield base.slot, f"{path}{name}"
