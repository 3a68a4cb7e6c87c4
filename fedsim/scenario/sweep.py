"""One file, many runs: the product of variants, grid, one row of zip, and seeds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from fedsim.base.address import hide
from fedsim.scenario.capacity import RUNS
from fedsim.scenario.leaves import steps
from fedsim.scenario.merge import Put, unknown_key
from fedsim.scenario.parts import keys_of
from fedsim.scenario.settings import Sweep
from fedsim.scenario.tree import List, Map, Node, Place, Problems, Scalar, is_null
from fedsim.scenario.write import inline

Axis = list[list[Put]]  # the settings of each step along it


@dataclass(frozen=True)
class Variation:
    """What sets one run of a sweep apart: its variant's settings, and those of grid, zip and seed."""

    variant: str = ""
    layer: Map | None = None
    puts: tuple[Put, ...] = ()


def _axis_values(node: Node, path: str, problems: Problems) -> list[Node]:
    if isinstance(node, List):
        if not node.items:
            problems.at(node.place, f"{path}: an empty list; at least one value is due")
        return list(node.items)
    try:
        found = steps(node.text) if isinstance(node, Scalar) else None
    except ValueError as error:
        problems.at(node.place, f"{path}: {error}")
        return []
    if found is None:
        problems.at(node.place, f"{path}: a list is due, or a range: `0..4`")
    return [Scalar(node.place, str(value)) for value in found or ()]


def _axes(node: Node | None, path: str, problems: Problems) -> list[Axis]:
    """One axis for each dotted key of `grid` or `zip`."""
    if node is None:
        return []
    if not isinstance(node, Map):
        problems.at(node.place, f"{path}: a mapping of dotted keys to lists is due")
        return []
    axes = []
    for name in node.entries:
        written = node.get(name)
        if written is not None:
            where = tuple(name.split("."))
            axes.append([[Put(where, value, node.keys[name])] for value in _axis_values(written, f"{path}.{name}", problems)])
    return axes


def _zipped(node: Node | None, problems: Problems) -> list[Axis]:
    axes = _axes(node, "sweep.zip", problems)
    if node is not None and len({len(axis) for axis in axes}) > 1:
        lengths = ", ".join(f"{'.'.join(axis[0][0].path)} {len(axis)}" for axis in axes if axis)
        problems.at(node.place, f"sweep.zip: lists of one length are due, not {lengths}")
        return []
    return [[[one for step in row for one in step] for row in zip(*axes, strict=True)]] if axes else []


def _variants(node: Node | None, problems: Problems) -> list[tuple[str, Map | None]]:
    if node is None:
        return [("", None)]
    if not isinstance(node, Map):
        problems.at(node.place, "sweep.variants: a mapping of names to partial scenarios is due")
        return [("", None)]
    found: list[tuple[str, Map | None]] = []
    for name in node.entries:
        layer = node.get(name)
        if isinstance(layer, Map):
            for key in set(layer.entries) & {"sweep", "smoke", "extends"}:
                problems.at(layer.keys[key], f"`{key}` can't stand in a variant")
            found.append((name, layer))
        elif layer is not None:
            problems.at(layer.place, f"sweep.variants.{name}: a partial scenario is due; `{{}}` changes nothing")
    return found or [("", None)]


def variations(node: Node | None, more: Sequence[Axis], problems: Problems) -> list[Variation]:
    """All runs of the sweep at this node, in order; `more` are axes from the command line. One run where nothing is swept."""
    if is_null(node) or (isinstance(node, Scalar) and node.text == "none"):
        node = None
    if node is not None and not isinstance(node, Map):
        problems.at(node.place, "sweep: a mapping is due: `{variants, grid, zip, seeds}`")
        node = None
    sweep = node if isinstance(node, Map) else Map(Place(), {}, {})
    for name in sweep.entries:
        if name not in keys_of(Sweep):
            problems.at(sweep.keys[name], unknown_key(name, "sweep", keys_of(Sweep)))
    axes = [*_axes(sweep.get("grid"), "sweep.grid", problems), *_zipped(sweep.get("zip"), problems), *more]
    seeds = sweep.get("seeds")
    if seeds is not None:
        axes.append([[Put(("seed",), value, value.place)] for value in _axis_values(seeds, "sweep.seeds", problems)])
    swept = [one.path for axis in axes for one in (axis[0] if axis else ())]
    for axis in axes:
        for one in axis[0] if axis else ():
            if swept.count(one.path) > 1:
                problems.at(one.place, f"`{'.'.join(one.path)}` is swept twice")
    variants = _variants(sweep.get("variants"), problems)
    if (runs := len(variants) * prod(map(len, axes))) > RUNS:
        problems.at(axes[-1][0][0].place, f"sweep: {runs:,} runs; at most {RUNS:,} are due")
        return []
    return [Variation(variant, layer, tuple(one for step in row for one in step)) for variant, layer in variants for row in product(*axes)]


def written_keys(node: Map, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The dotted keys that a partial scenario sets."""
    for name, item in node.entries.items():
        if isinstance(item, Map) and item.entries:
            yield from written_keys(item, (*path, name))
        else:
            yield (*path, name)


def folder_name(parts: Sequence[str]) -> str:
    """Words joined by `-`, safe in every file system."""
    words = ["".join(c for c in part.replace(" ", "") if c.isalnum() or c in "._+=%")[:60] for part in parts if part]
    return "-".join(words).lstrip(".") or "run"


def changes(variation: Variation) -> dict[str, str]:
    """Dotted key -> text of what grid and zip set in this run."""
    return {".".join(one.path): hide(inline(one.node)) for one in variation.puts if one.path != ("seed",)}
