"""Runs on disk from Python: settings, metrics and events as pandas frames, the model as a module, pictures for notebooks."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from fedsim.api.frames import comparison, events_of, metrics_of
from fedsim.api.pictures import Picture, chart, drawn
from fedsim.api.trusted import handed
from fedsim.base.errors import FedsimError
from fedsim.report.style import variants_of
from fedsim.run.folders import BEST, RunFolder, find_runs, runs_in
from fedsim.run.modules import models_of

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

Names = str | Path


class Result:
    """One run, as its folder has it. Files are read when asked for, and kept; all raise FedsimError where a file is missing or broken."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def label(self) -> str:
        """`buffered seed 0`"""
        return self.folder.label

    @property
    def status(self) -> str:
        """`finished`, `failed`, `stopped`, `running` or `killed`."""
        return self.folder.status

    @property
    def info(self) -> Mapping[str, Any]:
        """run.json: versions, seed, reason, hashes, what had been spent at the target."""
        return self.folder.info

    @property
    def settings(self) -> Mapping[str, str]:
        """All settings in force, by dotted key, as they are written in scenario.yaml."""
        return self.folder.parameters

    @property
    def final(self) -> Mapping[str, Any]:
        """The last evaluation, by metric name."""
        return self.folder.info.get("final") or {}

    @cached_property
    def metrics(self) -> "pd.DataFrame":
        """A row an evaluation, a column a metric (`test/accuracy`, `time/seconds`, ...); NaN where it was not measured."""
        return metrics_of(self.folder)

    @cached_property
    def events(self) -> "pd.DataFrame":
        """A row an event in the order of the log: `kind`, `node`, `job`, ...; `time`, `down`, `work` and `up` in seconds."""
        return events_of(self.folder)

    @cached_property
    def models(self) -> "list[nn.Module]":
        """The last models with their weights, on the CPU, in evaluation mode: the server's, or one a peer. Builds the task anew."""
        with handed():
            return models_of(self.folder)

    @cached_property
    def best_models(self) -> "list[nn.Module]":
        """Those of the best evaluation, likewise. Raises FedsimError where the run keeps none: see `evaluate.best`."""
        with handed():
            return models_of(self.folder, BEST)

    @property
    def model(self) -> "nn.Module":
        """The only one of `models`. Raises FedsimError for peers, who have one each."""
        if len(self.models) > 1:
            raise FedsimError(f"{self.label}: its {len(self.models)} peers have a model each; see `models`")
        return self.models[0]

    def __repr__(self) -> str:
        return f"<fedsim run {self.label}: {self.status}, {self.path}>"


class Results(Sequence[Result]):
    """Several runs, in order. What a single run has, one that stands alone here has too; frames of several tell them apart."""

    def __init__(self, folders: Sequence[RunFolder]) -> None:
        self.folders = list(folders)
        self.runs = [Result(folder) for folder in folders]

    def __len__(self) -> int:
        return len(self.runs)

    @overload
    def __getitem__(self, place: int) -> Result: ...
    @overload
    def __getitem__(self, place: slice | str) -> "Results": ...
    def __getitem__(self, place: int | slice | str) -> "Result | Results":
        """A run by its place, or those of a slice or of a variant. Raises FedsimError for an unknown variant."""
        if isinstance(place, str):
            known = {variant.name: variant.runs for variant in variants_of(self.folders)}
            if place not in known:
                from fedsim.scenario.leaves import nearest

                raise FedsimError(f"no variant `{place}`{nearest(place, known)}")
            return Results(known[place])
        return Results(self.folders[place]) if isinstance(place, slice) else self.runs[place]

    def __iter__(self) -> Iterator[Result]:
        return iter(self.runs)

    @property
    def metrics(self) -> "pd.DataFrame":
        """The runs' metrics below each other, with `variant` and `seed` in front."""
        return self._together("metrics")

    @property
    def events(self) -> "pd.DataFrame":
        """Likewise their events."""
        return self._together("events")

    @property
    def model(self) -> "nn.Module":
        """Of a run that stands alone. Raises FedsimError for several."""
        if len(self) != 1:
            raise FedsimError(f"{len(self)} runs have a model each, such as runs[0].model")
        return self.runs[0].model

    def compare(self, baseline: str | None = None, where: Sequence[str] = (), best: bool = False) -> "pd.DataFrame":
        """See `fedsim.compare`."""
        return comparison(self.folders, baseline, where, best)

    def plot(self, x: str = "seconds", y: str = "accuracy", variants: str = "") -> Picture:
        """One chart, as `fedsim plot --x --y --variants` draws it."""
        return chart(self.folders, x, y, variants)

    def pictures(self) -> list[Picture]:
        """All pictures that their data allow, as `fedsim plot` draws them."""
        return drawn(self.folders)

    def _together(self, name: str) -> "pd.DataFrame":
        import pandas as pd

        named = {run.path: variant.name for variant in variants_of(self.folders) for run in variant.runs}
        frames = [getattr(run, name).assign(variant=named[run.path], seed=run.info.get("seed")) for run in self]
        whole = pd.concat(frames, ignore_index=True)
        return whole[["variant", "seed", *(column for column in whole.columns if column not in ("variant", "seed"))]]

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.runs)) or "<no fedsim runs>"

    def _repr_html_(self) -> str:
        import pandas as pd

        rows = [
            {"run": run.label, "status": run.status, "accuracy": run.final.get("test/accuracy"), "folder": str(run.path)} for run in self
        ]
        return str(pd.DataFrame(rows).to_html(index=False, na_rep="-"))


def runs(*names: Names, root: str | Path = "runs") -> Results:
    """The runs that RUN arguments of the command line mean, each once: folders, names (their latest below `root`), `name/variant`, hashes.

    Without any, the latest of each name. Raises FedsimError, with the nearest names, where nothing is found.
    """
    folders = [] if names or not Path(root).is_dir() else [folder for folder in sorted(Path(root).iterdir()) if runs_in(folder)]
    return Results(find_runs([str(name) for name in names or folders], Path(root)))


def compare(
    *names: Names | Result | Results,
    baseline: str | None = None,
    where: Sequence[str] = (),
    best: bool = False,
    root: str | Path = "runs",
) -> "pd.DataFrame":
    """A row a variant: means and deviations over seeds, medians at the target, seed-paired differences to a baseline.

    Arguments are those of `fedsim compare`: runs (or their names), `baseline` a variant or `key=value`, `where` `key=value` texts that
    keep runs. Shares are from 0 to 1, times in seconds, energy in joules. `attrs` has notes, the settings that differ, sentences for
    a paper, and what is cheapest.

    Raises FedsimError where a name is unknown.
    """
    folders: list[RunFolder] = []
    for name in names:
        if isinstance(name, Results):
            folders += name.folders
        else:
            folders += [name.folder] if isinstance(name, Result) else find_runs([str(name)], Path(root))
    return comparison(list({folder.path.resolve(): folder for folder in folders}.values()), baseline, where, best)
