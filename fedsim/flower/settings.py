"""The file that `fedsim flower --world` names: a scenario of which only what is around an app counts."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim.base.address import hide
from fedsim.base.clock import ticks_per_second
from fedsim.base.errors import Problem, ScenarioError, SettingError
from fedsim.flower.app import App, Config
from fedsim.scenario.files import layers_of
from fedsim.scenario.merge import assemble
from fedsim.scenario.parts import Key, top_keys
from fedsim.scenario.read import BAD, Reader, blamed
from fedsim.scenario.settings import Evaluate, Stop, Track
from fedsim.scenario.tree import Map, Place, Problems
from fedsim.scenario.trust import reading_in
from fedsim.scenario.write import document, flat, quoted, setting_tree
from fedsim.settings.anchored import anchored
from fedsim.settings.values import Population, blocks
from fedsim.world import Nature, World

USED = ("about", "seed", "groups", "world", "evaluate", "stop", "track")
READ = {"evaluate": ("target", "smooth"), "stop": ("seconds",)}  # of these, no more
NO_MATTER = ("name", "extends", "smoke", "sweep", "flower")  # not told as unused


@dataclass(frozen=True)
class Around:
    """What is around an app: the world and its people, the seed, and when it ends. `unused`: what else the file sets."""

    people: Population
    world: World = World()
    seed: int = 0
    evaluate: Evaluate = Evaluate()
    stop: Stop = Stop()
    track: Track = field(default_factory=Track)
    about: str = ""
    groups: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    places: Mapping[str, Place] = field(default_factory=dict, repr=False)
    file: Path = Path("--world")

    def nature(self) -> Nature:
        """The world over its people. Raises ScenarioError, with the place, where they don't fit."""
        try:
            try:
                fine = self.world.denominators(self.people)
            except ValueError as error:
                raise SettingError("world", str(error)) from error
            seconds = self.stop.seconds
            exact = [*fine, *([(seconds * 10**9).denominator] if seconds else [])]
            world = anchored(self.world, self.file.resolve().parent)
            nature = Nature(world, self.people, self.seed, ticks_per_second(exact, seconds))
            if nature.liars is not None:
                raise SettingError("world.attackers", "an app's replies are its own: nobody can be made to lie; `none` is due")
            if nature.step.any():
                raise SettingError("world.compute.step", "an app doesn't tell its steps; `job` or `sample` is due")
        except SettingError as error:
            raise ScenarioError([self._problem(error)]) from error
        return nature

    def lines(self, app: App, nodes: int, config: Config, options: Mapping[str, str]) -> Iterator[str]:
        """scenario.yaml of a run: all that it depends on, each with a comment where it came from."""
        world = anchored(self.world, self.file.resolve().parent)  # wherever this file lies
        yield from document(_node(vars(self) | {"world": world}), self._origin)
        words = {"app": app.name, "version": app.version or "-", "folder": str(app.folder.resolve()), "nodes": str(nodes)} | dict(options)
        yield "flower:"
        yield from (f"  {name}: {quoted(text)}" for name, text in words.items())
        yield "  config:" if config else "  config: {}"
        yield from (f"    {quoted(name)}: {quoted(hide(str(value)))}" for name, value in config.items())

    def hash(self, app: App, nodes: int, config: Config) -> str:
        """Of the question: six digits."""
        texts = dict(flat(_node({name: vars(self)[name] for name in ("seed", "groups", "world")})))
        question = [texts, app.name, dict(app.files), nodes, config]
        return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:6]

    def _problem(self, error: SettingError) -> Problem:
        key = error.key
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        at = blamed(key, self.places) or Place(str(self.file))
        return Problem(str(error), at.file, at.line, at.column, at.text, at.width)

    def _origin(self, key: str) -> str:
        place = self.places.get(key)
        return f"{Path(place.file).name}:{place.line}" if place else "default"


def around(file: Path | None, nodes: int, seed: int | None = None) -> Around:
    """What a file says of what is around an app of so many nodes; without one nothing takes time. `seed` goes before the file's.

    A whole scenario will do. Raises ScenarioError with all problems.
    """
    if file is None:
        return Around(Population(nodes, {}), seed=seed or 0)
    problems = Problems()
    layers = layers_of(file, problems)
    if not layers:
        problems.check()
    reading_in(file.resolve().parent)
    whole, strategy = assemble([layer.without("sweep", "smoke") for layer in layers], [], problems)
    known = top_keys(strategy)
    keys = {name: known[name] for name in USED}
    groups = whole.get("groups")
    reader = Reader(problems, tuple(groups.entries) if isinstance(groups, Map) else ())
    values = reader.fields(whole, keys, "", {}, *(name for name in known if name not in USED), "extends", "flower")
    named: dict[str, range] = {}
    if values["groups"] is not BAD:
        try:
            named = blocks(values["groups"], nodes)
        except ValueError as error:
            problems.at(reader.places.get("groups"), f"groups: {error}")
    problems.check()
    unused = [name for name in whole.entries if name not in (*USED, *NO_MATTER)]
    unused += [
        f"{upper}.{name}"
        for upper, few in READ.items()
        if isinstance(part := whole.get(upper), Map)
        for name in part.entries
        if name not in few
    ]
    if seed is not None:
        values["seed"] = seed
    return Around(Population(nodes, named), **values, unused=tuple(unused), places=reader.places, file=file)


def _node(values: Mapping[str, Any]) -> Map:
    keys: dict[str, Key] = top_keys(None)
    entries = {name: setting_tree(values[name], keys[name]) for name in USED if name in values}
    for upper, few in READ.items():
        if isinstance(part := entries.get(upper), Map):
            entries[upper] = part.without(*(name for name in part.entries if name not in few))
    return Map(Place(), entries, dict.fromkeys(entries, Place()))
