"""`load`: a scenario file, with everything it extends, sweeps and is told on the command line, as checked runs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from fedsim.base.errors import Problem, SettingError
from fedsim.base.visible import is_folder_name, one_line
from fedsim.data.sources import Npz
from fedsim.method.strategy import Strategy
from fedsim.scenario.command_line import axes_of, overrides_of
from fedsim.scenario.files import layers_given, layers_of
from fedsim.scenario.merge import Put, assemble, merged, put_all, strategy_class
from fedsim.scenario.own import files_of
from fedsim.scenario.parts import WITHIN, Key, top_keys
from fedsim.scenario.read import BAD, Reader, Shared, blamed
from fedsim.scenario.settings import Scenario
from fedsim.scenario.sweep import Variation, changes, folder_name, variations, written_keys
from fedsim.scenario.tree import Map, Node, Place, Problems, parse
from fedsim.scenario.trust import reading_in
from fedsim.scenario.write import document, flat, setting_tree
from fedsim.settings.anchored import anchored
from fedsim.settings.spans import covering
from fedsim.settings.values import Count, PerNode, blocks

NOT_THE_QUESTION = ("name", "about", "track", "checkpoint", "deploy", "engine", "stop")
RAW = ("sweep", "smoke")  # trees that are merged, not values


@dataclass(frozen=True)
class Loaded:
    """One run: the scenario, what sets it apart from the others of its file, and where each setting stands."""

    scenario: Scenario
    file: Path
    variant: str = ""
    changed: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""
    hash: str = ""
    resolved: str = field(default="", repr=False)
    flat: Mapping[str, str] = field(default_factory=dict, repr=False)
    own: Mapping[str, Path] = field(default_factory=dict, repr=False)
    places: Mapping[str, Place] = field(default_factory=dict, repr=False)

    @property
    def seed(self) -> int:
        return self.scenario.seed

    @property
    def label(self) -> str:
        """`buffered lr 0.1 seed 0`"""
        return str(one_line(" ".join([*([self.variant] if self.variant else []), *_told(self.changed), f"seed {self.seed}"])))

    @property
    def base(self) -> Path:
        """The folder of the file: data and code beside it are looked for here."""
        return self.file.resolve().parent

    def problem(self, error: SettingError) -> Problem:
        """A mistake found after reading, placed where its setting, or the nearest around it that is written, stands."""
        found = _nearest(error.key, self.places) or Place(str(self.file))
        return Problem(str(error), found.file, found.line, found.column, found.text, found.width)


def _told(changed: Mapping[str, str]) -> list[str]:
    """`lr 0.1`: each setting by its last word; of several with the same last word and text one, of those with other texts the whole key."""
    words = {key: key.rsplit(".", 1)[-1] for key in changed}
    texts: dict[str, set[str]] = {}
    for key, text in changed.items():
        texts.setdefault(words[key], set()).add(text)
    return [*dict.fromkeys(f"{words[key] if len(texts[words[key]]) == 1 else key} {text}" for key, text in changed.items())]


def _nearest(key: str, places: Mapping[str, Place]) -> Place | None:
    """Where a setting, or the nearest around it that is written, stands."""
    while key and key not in places:
        key = key.rpartition(".")[0]
    return blamed(key, places)


def load(path: str | Path | Map, overrides: Sequence[str | Put] = (), smoke: bool = False, sweeping: bool = False) -> list[Loaded]:
    """All runs of a scenario file, or of a tree that stands in none, each checked before any is returned.

    `overrides` are `key=value` texts, or settings as trees; with `sweeping`, lists among them are swept. Raises ScenarioError with all
    problems.
    """
    problems = Problems()
    file = Path(path.place.file if isinstance(path, Map) else path)
    layers = layers_given(path, problems) if isinstance(path, Map) else layers_of(file, problems)
    puts = [put for one in overrides for put in ([one] if isinstance(one, Put) else overrides_of([one], problems))]
    if not layers:
        problems.check()
    reading_in(file.resolve().parent)
    sweep, smoked = _raw(layers, [one for one in puts if one.path[0] in RAW], smoke, problems)
    puts = [one for one in puts if one.path[0] not in RAW]
    axes, puts = axes_of(puts, assemble([layer.without(*RAW) for layer in layers], [], problems))
    if not sweeping:
        for axis in axes:
            one = axis[0][0]
            problems.at(one.node.place, f"{'.'.join(one.path)}: several values are for `fedsim sweep`; one is due")
        axes = []
    found = variations(sweep, axes, problems)
    _conflicts(found, puts, problems)
    builder = _Builder(file, layers, smoked, puts, problems)
    built = [builder.run(one) for one in found]
    problems.check()
    runs = [one for one in built if one is not None]
    return _folders(runs) if isinstance(sweep, Map) or axes else runs


def _raw(layers: Sequence[Map], puts: Sequence[Put], smoke: bool, problems: Problems) -> tuple[Node | None, Map | None]:
    """The merged `sweep`, and `smoke` if it is asked for."""
    whole, _ = assemble(layers, puts, problems)
    if not smoke:
        return whole.get("sweep"), None
    smoked = whole.get("smoke") or parse("{stop: {rounds: 2}}", "--smoke", problems, line_numbers=False)
    if not isinstance(smoked, Map):
        problems.at(smoked.place if smoked else None, "smoke: a partial scenario is due")
        return whole.get("sweep"), None
    for key in set(smoked.entries) & {"sweep", "smoke", "extends"}:
        problems.at(smoked.keys[key], f"`{key}` can't stand in `smoke`")
    return whole.get("sweep"), smoked


def _conflicts(found: Sequence[Variation], puts: Sequence[Put], problems: Problems) -> None:
    """A setting both swept and set on the command line: one of them would do nothing."""
    swept = {one.path for variation in found for one in variation.puts}
    swept |= {path for variation in found if variation.layer for path in written_keys(variation.layer)}
    for one in puts:
        for path in sorted(swept):
            if path[: len(one.path)] == one.path:
                problems.at(one.place, f"`{'.'.join(path)}` is swept in the file; set it there, or take `sweep` out with `sweep=null`")


class _Builder:
    """Builds the runs of a file. What they share is put together, read and written once: a run of a sweep costs what it changes."""

    def __init__(self, file: Path, layers: Sequence[Map], smoke: Map | None, puts: Sequence[Put], problems: Problems) -> None:
        self.file, self.smoke, self.puts, self.problems = file, smoke, puts, problems
        self.layers = [layer.without(*RAW) for layer in layers]
        self.base = file.resolve().parent
        self.bases: dict[type[Strategy] | None, Map] = {}  # all layers, as this strategy needs them
        self.read = Shared()
        self.written: dict[tuple[str, int], tuple[Any, Any, Node]] = {}  # by top-level key and the value's id, which is kept alive

    def run(self, one: Variation) -> Loaded | None:
        """The checked run, None where there are problems."""
        whole, strategy = self._whole(one)
        groups = whole.get("groups")
        names = tuple(groups.entries) if isinstance(groups, Map) else ()
        reader = Reader(self.problems, names, (strategy.__module__,) if strategy else (), self.read)
        keys = {name: key for name, key in top_keys(strategy).items() if name not in RAW}
        values = reader.fields(whole, keys, "", {"name": self.file.stem}, *RAW, "extends")
        if any(value is BAD for value in values.values()):
            return None
        try:
            values["strategy"] = replace(values["strategy"], **{name: values[name] for name in WITHIN})
        except SettingError as error:  # a method that does not go with a schedule or codec
            self.problems.at(_nearest(error.key, reader.places) or reader.places.get("strategy"), str(error))
            return None
        except ValueError as error:
            self.problems.at(blamed("strategy", reader.places), f"strategy: {error}")
            return None
        scenario = Scenario(**values)
        _fits(scenario, reader)
        return None if self.problems else self._loaded(scenario, one, reader)

    def _whole(self, one: Variation) -> tuple[Map, type[Strategy] | None]:
        variant = [one.layer] if one.layer is not None else []
        strategy = strategy_class([*self.layers, *variant], one.puts)
        if strategy not in self.bases:
            self.bases[strategy] = merged(self.layers, strategy)
        whole = put_all(merged([self.bases[strategy], *variant], strategy), one.puts, strategy, self.problems)
        return assemble([whole, *([self.smoke] if self.smoke else [])], self.puts, self.problems)

    def _loaded(self, scenario: Scenario, one: Variation, reader: Reader) -> Loaded:
        keys = {name: key for name, key in top_keys(type(scenario.strategy)).items() if name not in RAW}
        places = reader.places
        texts = {key: text.removeprefix("at most ") for key, text in flat(self._node(scenario, keys))}
        parts = ("task", "world", "strategy", "schedule")
        anywhere = replace(scenario, **{name: anchored(getattr(scenario, name), self.base) for name in parts})
        lines = document(self._node(anywhere, keys), lambda key: _origin(key, places, scenario.strategy))
        resolved, own = "\n".join(lines) + "\n", files_of(reader.own, self.base)
        return Loaded(scenario, self.file, one.variant, changes(one), "", _hash(texts), resolved, texts, own, places)

    def _node(self, scenario: Scenario, keys: Mapping[str, Key]) -> Map:
        entries = {name: self._entry(getattr(scenario, name), key) for name, key in keys.items()}
        return Map(Place(), entries, dict.fromkeys(entries, Place()))

    def _entry(self, value: Any, key: Key) -> Node:
        known = self.written.get((key.name, id(value)))
        if known is None or known[1] is not key:
            known = self.written[key.name, id(value)] = value, key, setting_tree(value, key)
        return known[2]


def _hash(texts: Mapping[str, str]) -> str:
    """Of the question, the same on any machine: of a data file only its name counts."""
    elsewhere = ("task.data.base", "task.weights")  # of these numbers a run has its own hash
    question = {key: text for key, text in texts.items() if key.split(".")[0] not in NOT_THE_QUESTION and key not in elsewhere}
    if question["task.data"] == Npz.name:
        question |= {key: Path(question[key]).name.removesuffix(".npz") for key in ("task.data.file", "task.data.test")}
    question |= {
        key: Path(text).name for key, text in question.items() if key.startswith(("world.", "schedule.")) and key.endswith(".file")
    }
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:6]


def _origin(key: str, places: Mapping[str, Place], strategy: Strategy) -> str:
    place = places.get(key)
    if place is None:
        return f"default of {strategy.name}" if key.split(".")[0] in WITHIN else "default"
    return f"{Path(place.file).name}:{place.line}" if place.line else place.file


def _folders(runs: list[Loaded]) -> list[Loaded]:
    """With a folder name each, all different."""
    named: dict[str, Loaded] = {}
    several = len({run.seed for run in runs}) > 1
    for run in runs:
        changed = [key.rsplit(".", 1)[-1] + text for key, text in run.changed.items()]
        words = [run.variant, *changed]
        plain = folder_name([*words, *([f"seed{run.seed}"] if several or not any(words) else [])])
        name, number = plain, 2
        while name in named:
            name, number = f"{plain}-{number}", number + 1
        named[name] = replace(run, folder=name)
    return list(named.values())


def _fits(scenario: Scenario, reader: Reader) -> None:
    """What can be said of node counts before data are read: groups, cohorts, lists with one entry a node."""
    if not is_folder_name(scenario.name):
        shown = " ".join(scenario.name[:50].split())
        due = "short, on one line, no slashes, and no dot in front"
        reader.problems.at(reader.places.get("name"), f"name: `{shown}` can't be a folder's name: {due}")
    nodes = scenario.task.partition.nodes
    if nodes is None:
        return
    try:
        blocks(scenario.groups, nodes)
    except ValueError as error:
        reader.problems.at(reader.places.get("groups"), f"groups: {error}")
    for path, value in _values(scenario, ""):
        try:
            if isinstance(value, Count):
                value.of(nodes)
            elif isinstance(value, PerNode) and isinstance(value.value, tuple) and len(value.value) != nodes:
                raise ValueError(f"a list of {len(value.value)} for {nodes} nodes")
            elif isinstance(value, PerNode) and isinstance(value.value, Mapping) and not set(value.value) & set(scenario.groups):
                covering(value.value, nodes)
        except ValueError as error:
            reader.problems.at(reader.places.get(path), f"{path}: {error}")


def _values(value: Any, path: str) -> list[tuple[str, Any]]:
    """(dotted key, value) of a scenario's settings; those within the strategy stand at the top."""
    if isinstance(value, Count | PerNode):
        return [(path, value)]
    if isinstance(value, tuple):
        return [inner for index, item in enumerate(value) for inner in _values(item, f"{path}.{index}")]
    if not is_dataclass(value) or path == "world.edges":  # those are values per edge
        return []
    names = [one.name for one in fields(value) if not (path == "strategy" and one.name in WITHIN)]
    return [inner for name in names for inner in _values(getattr(value, name), f"{path}.{name.rstrip('_')}".lstrip("."))]
