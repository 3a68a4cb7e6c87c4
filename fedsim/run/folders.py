"""Run folders: reading one, and finding those that a user means."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.base.crashes import held
from fedsim.base.errors import FedsimError
from fedsim.federation.ledger import KINDS
from fedsim.run.intact import read_arrays, read_clients, read_column, read_json, read_last, read_records, read_segments

Columns = dict[str, NDArray[Any]]
WORKERS = "workers.json"
LAST, BEST = "model.safetensors", "best.safetensors"  # models of the end, and of the best evaluation
FINAL = ("finished", "failed", "stopped")
_STAMP = re.compile(r"\d{8}-\d{6}-[0-9a-f]+")


@dataclass(frozen=True)
class RunFolder:
    """One run on disk. Files are read when asked for and kept: make a new one to see what a live run has added."""

    path: Path

    @cached_property
    def info(self) -> dict[str, Any]:
        """run.json. Raises FedsimError where it is missing or broken."""
        return read_json(self.path / "run.json")

    @property
    def status(self) -> str:
        """How it ended, `running`, or `killed` where its process is gone without having said how."""
        status = str(self.info.get("status", "running"))
        return status if status in FINAL or held(self.path) else "killed"

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """metrics.jsonl, one record an evaluation; a last line that is still being written is left out.

        Raises FedsimError where a line is damaged.
        """
        file = self.path / "metrics.jsonl"
        records, wrong = read_records(file)
        if wrong:
            raise FedsimError(f"{file}: {wrong}")
        return records

    @cached_property
    def last(self) -> dict[str, Any] | None:
        """The last record of `metrics`, read without those before it. Raises FedsimError where it is damaged."""
        return read_last(self.path / "metrics.jsonl")

    def check_end(self) -> None:
        """Raises FedsimError where a finished run's metrics lack the end that run.json tells."""
        final = self.info.get("final")
        if self.info.get("status") == "finished" and final and self.last != final:
            raise FedsimError(f"{self.path / 'metrics.jsonl'}: its last line is not the end that run.json tells")

    def column(self, metric: str) -> NDArray[np.float64]:
        """float64 [evaluations]: one metric, NaN where a record lacks it. Records are not made of it where none are yet."""
        if "metrics" not in self.__dict__ and (found := read_column(self.path / "metrics.jsonl", metric)) is not None:
            return np.array(found)
        return np.array([np.nan if (value := record.get(metric)) is None else value for record in self.metrics], dtype=np.float64)

    @cached_property
    def events(self) -> Any:
        """pyarrow.Table of all event segments in log order. Raises FedsimError where a segment is missing or damaged."""
        files = sorted((self.path / "events").glob("*.parquet"))
        if not files:
            ended = _there(self.path / "run.json") and self.info.get("reason")
            raise FedsimError(f"{self.path}: no events were written{f' ({self.status}: {ended})' if ended else ''}")
        for number, file in enumerate(files):
            if file.name != f"{number:06d}.parquet":
                raise FedsimError(f"{file.parent}: {number:06d}.parquet is missing, or {file.name} is no segment")
        return read_segments(files)

    @cached_property
    def columns(self) -> Columns:
        """The events as arrays [events], see `columns_of`."""
        return columns_of(self.events)

    @cached_property
    def ticks_per_second(self) -> int:
        """What the events' times are counted in."""
        return int(json.loads((self.events.schema.metadata or {})[b"fedsim"])["ticks_per_second"])

    @cached_property
    def label_counts(self) -> NDArray[np.int64] | None:
        """int [nodes, classes], of some nodes where they are very many; None where samples have no labels."""
        file = self.path / str(self.info.get("label_counts") or "labels.npz")
        if not _there(file):
            return None
        counts: NDArray[np.int64] = read_arrays(file, counts=("iu", 2))["counts"]
        if not counts.size or counts.min() < 0:
            raise FedsimError(f"{file}: broken (numbers of samples are due)")
        return counts

    @cached_property
    def clients(self) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """Nodes [k] and their accuracies [k] at the last evaluation that was kept, see `RunWriter.clients`; None where none was."""
        files = sorted((self.path / "clients").glob("*.parquet"))
        return read_clients(files[-1]) if files else None

    @cached_property
    def graph(self) -> dict[str, NDArray[Any]] | None:
        """Who hears whom among peers in the first round, see `RunWriter.graph`; None with a server, and where nodes are very many."""
        file = self.path / "graph.npz"
        if not _there(file):
            return None
        arrays = read_arrays(file, hearer=("iu", 1), sender=("iu", 1), nodes=("iu", 0), gap=("fiu", 0))
        ends = np.concatenate([arrays["hearer"], arrays["sender"]])
        if len(arrays["hearer"]) != len(arrays["sender"]) or not 0 <= ends.min(initial=0) <= ends.max(initial=0) < arrays["nodes"]:
            raise FedsimError(f"{file}: broken (its messages are not between its nodes)")
        return arrays

    def arrays(self, name: str) -> list[dict[str, NDArray[Any]]]:
        """What a metric has left (`RunWriter.arrays`), one evaluation after the other."""
        return [read_arrays(file) for file in sorted((self.path / name).glob("*.npz"))]

    @cached_property
    def parameters(self) -> dict[str, str]:
        """The settings in force by dotted key, as they are written in scenario.yaml."""
        file = self.path / "scenario.yaml"
        return dict(flatten(read_yaml(file))) if file.exists() else {}

    @cached_property
    def workers(self) -> dict[str, Any] | None:
        """Of a deployed run who worked for it, as its server last wrote. Raises FedsimError where that is broken."""
        return read_json(self.path / WORKERS) if _there(self.path / WORKERS) else None

    @property
    def label(self) -> str:
        """`buffered seed 0`"""
        return str(self.info.get("label") or self.info.get("name") or self.path.name)


def _there(file: Path) -> bool:
    """A link to nowhere is there, and can't be read."""
    return file.exists() or file.is_symlink()


def read_yaml(file: Path) -> Any:
    """Mappings, lists and texts. Raises FedsimError where it is no scenario that `fedsim.scenario` would read."""
    from fedsim.scenario.capacity import text_of

    try:
        return plain_yaml(text_of(file), str(file))
    except (OSError, ValueError) as error:
        raise FedsimError(f"{file}: broken ({error})") from None


def plain_yaml(text: str, name: str) -> Any:
    """The same of a text. Raises ValueError."""
    from fedsim.scenario.tree import List, Map, Node, Problems, Scalar, parse

    def plain(node: Node | None) -> Any:
        if isinstance(node, Map):
            return {name: plain(item) for name, item in node.entries.items()}
        return [plain(item) for item in node.items] if isinstance(node, List) else node.text if isinstance(node, Scalar) else {}

    problems = Problems()
    root = parse(text, name, problems)
    if problems:
        raise ValueError(f"line {problems[0].line}: {problems[0].message}")
    return plain(root)


def columns_of(table: Any) -> Columns:
    """Events as arrays [events]; `kind` is int8 and counts along KINDS."""
    arrays = {name: table[name].combine_chunks() for name in table.column_names}
    columns = {name: np.from_dlpack(array) for name, array in arrays.items() if name != "kind"}  # `to_numpy` would import pandas
    if not len(table):
        return columns | {"kind": np.zeros(0, dtype=np.int8)}
    kinds = arrays["kind"].dictionary_encode()
    codes = np.array([KINDS.index(kind) for kind in kinds.dictionary.to_pylist()], dtype=np.int8)
    return columns | {"kind": codes[np.from_dlpack(kinds.indices)]}


def flatten(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of nested mappings; a list of plain values is one text, `[1, 2]`."""
    if isinstance(content, dict) and content:
        for name, inner in content.items():
            yield from flatten(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(content, list) and any(isinstance(item, dict | list) for item in content):
        for place, item in enumerate(content):
            yield from flatten(item, f"{key}.{place}")
    elif isinstance(content, list):
        yield key, f"[{', '.join(map(str, content))}]"
    elif content != {}:
        yield key, str(content)


def runs_in(folder: Path) -> list[RunFolder]:
    """The run that a folder is, or those begun of the sweep that it is, in order, or the latest of a scenario's folder; else none."""
    if (folder / "sweep.json").exists():
        return [RunFolder(run) for run in planned_in(folder) if (run / "run.json").exists()]
    if (folder / "run.json").exists():
        return [RunFolder(folder)]
    if (folder / "latest").exists():
        return runs_in((folder / "latest").resolve())
    stamped = sorted(inner for inner in folder.glob("*") if _STAMP.fullmatch(inner.name))
    return runs_in(stamped[-1]) if stamped else []


def planned_in(upper: Path) -> list[Path]:
    """The folders of a sweep's runs. Raises FedsimError where sweep.json names a place that is no folder of its own."""
    names = read_json(upper / "sweep.json").get("runs", [])
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or Path(name).name != name or name in ("", "..") or (upper / name).is_symlink():
            raise FedsimError(f"{upper / 'sweep.json'}: `{name}` is no folder of the sweep")
    return [upper / name for name in names]


def find_runs(texts: Sequence[str], root: Path | None = None) -> list[RunFolder]:
    """The runs that RUN arguments mean, each once, in order.

    A RUN is a folder, a name (its latest under `root`, by default runs/), `name/variant`, or the start of a hash; a sweep gives
    all its runs. Raises FedsimError, with the nearest names, where nothing is found.
    """
    found: dict[Path, RunFolder] = {}
    for text in texts:
        runs = _meant(text, Path("runs") if root is None else root)
        found |= {run.path.resolve(): run for run in runs}
    return list(found.values())


def find_planned(texts: Sequence[str], root: Path | None = None) -> list[list[RunFolder]]:
    """Like `find_runs`, by upper folder; where all begun runs of a sweep are meant, also those that never began (without run.json)."""
    groups: dict[Path, list[RunFolder]] = {}
    for run in find_runs(texts, root):
        upper = run.path.parent if (run.path.parent / "sweep.json").exists() else run.path
        groups.setdefault(upper, []).append(run)
    for upper, runs in groups.items():
        if upper != runs[0].path and len(runs) == len(runs_in(upper)):
            groups[upper] = [RunFolder(run) for run in planned_in(upper)]
    return list(groups.values())


def _meant(text: str, root: Path) -> list[RunFolder]:
    for folder in (Path(text), root / text):
        if folder.is_dir() and (runs := runs_in(folder.resolve() if folder.name == "latest" else folder)):
            return [RunFolder(_shown(run.path)) for run in runs]
    name, _, variant = text.strip("/").partition("/")
    if variant and (runs := _of_variant(runs_in(root / name), variant)):
        return [RunFolder(_shown(run.path)) for run in runs]
    if re.fullmatch(r"[0-9a-f]{4,64}", text) and (runs := _of_hash(text, root)):
        return runs
    for folder in (Path(text), root / text, root / text / "latest"):
        if (folder / "lock").exists() and not (folder / "sweep.json").exists():
            read_json(folder / "run.json")  # which says what became of it
    raise FedsimError(_not_found(text, root))


def _of_variant(runs: list[RunFolder], variant: str) -> list[RunFolder]:
    """By exact folder, by the variant's name, or by the beginning of a folder's name (`fedprox-lr0.1` has several seeds)."""
    exact = [run for run in runs if run.path.name == variant]
    named = [run for run in runs if run.info.get("variant") == variant]
    return exact or named or [run for run in runs if run.path.name.startswith(f"{variant}-")]


def _of_hash(text: str, root: Path) -> list[RunFolder]:
    """The latest run or sweep whose hash begins so."""
    stamped = sorted(_stamped(root), key=lambda folder: folder.name, reverse=True)
    for folder in stamped:
        own = folder.name.rpartition("-")[2]
        if own.startswith(text) or text.startswith(own):
            return runs_in(folder)
    for folder in stamped:
        if runs := [run for run in runs_in(folder) if str(run.info.get("hash", "")).startswith(text)]:
            return runs
    return []


def _stamped(root: Path) -> list[Path]:
    return [folder for folder in root.glob("*/*") if _STAMP.fullmatch(folder.name) and folder.is_dir()]


def _shown(path: Path) -> Path:
    """The path below the working folder if it lies there: shorter to read and to type."""
    here = Path(os.path.realpath("."))
    real = Path(os.path.realpath(path))
    return real.relative_to(here) if real.is_relative_to(here) and real != here else real


def _not_found(text: str, root: Path) -> str:
    names = sorted({folder.parent.name for folder in _stamped(root)})
    if not names:
        return f"no run `{text}`: it is no run's folder, and {root}/ has no runs yet"
    variants = [f"{name}/{run.path.name}" for name in names for run in runs_in(root / name) if _STAMP.fullmatch(run.path.name) is None]
    near = get_close_matches(text, names + variants, 3, 0.5) or names[:5]
    return f"no run `{text}` under {root}/; nearest: {', '.join(near)}"
