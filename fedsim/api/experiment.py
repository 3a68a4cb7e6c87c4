"""A scenario from Python: `load` checks it, `Experiment.run` runs it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.api.results import Results
from fedsim.api.trusted import handed, modules
from fedsim.base.errors import RunError, ScenarioError
from fedsim.commands.experiment import begin, preview, work_on
from fedsim.run.building import Tasks, build, check
from fedsim.run.folders import runs_in
from fedsim.scenario import loader
from fedsim.scenario.given import Given
from fedsim.scenario.loader import Loaded


@dataclass(frozen=True)
class Experiment:
    """The checked runs of a scenario, as `load` gives them."""

    runs: tuple[Loaded, ...]

    def __len__(self) -> int:
        return len(self.runs)

    def __repr__(self) -> str:
        named = ", ".join(run.label for run in self.runs[:6])
        return f"<fedsim experiment {self.runs[0].scenario.name}: {named}{', ...' if len(self) > 6 else ''}>"

    def describe(self) -> str:
        """What each run would do, as `fedsim validate` says it: nodes, samples, parameters, bytes and simulated seconds of a job."""
        tasks = Tasks()
        with handed():
            return "\n".join(preview(build(run, tasks)) for run in self.runs)

    def run(self, folder: str | Path = "runs", quiet: bool = False, pictures: bool = False) -> Results:
        """Runs all of it, one after the other, into a new folder below `folder`, as `fedsim run` does.

        Tracking is the scenario's; `quiet` shows no progress; `pictures` draws them all at the end (`Results.pictures` does so later).
        Raises ScenarioError where something can't be built (nothing was started then), RunError where runs failed, with where they are;
        the others are finished.
        """
        tasks, runs = Tasks(), list(self.runs)
        with handed():
            if found := check(runs, tasks) if len(runs) > 1 else {}:
                by_label = {run.label: run for run in runs}
                raise ScenarioError([by_label[label].problem(error) for label, error in found.items()])
            upper, planned = begin(runs, tasks, Path(folder))
            code = work_on(upper, planned, tasks, quiet, "fedsim.load(...).run()", pictures=pictures)
        if code == 130:
            raise KeyboardInterrupt
        results = Results(runs_in(upper))
        if bad := [f"{one.label}: {one.info.get('reason')}" for one in results if one.info.get("status") != "finished"]:
            raise RunError(f"{len(bad)} of {len(self)} runs failed ({'; '.join(bad)}); all are in fedsim.runs({str(upper)!r})")
        return results


def load(scenario: str | Path | Mapping[str, Any], smoke: bool = False, **changes: Any) -> Experiment:
    """A checked scenario: a file, or a mapping of what a file would hold; `changes` are laid over it.

    A change replaces what its key has, or goes into it where it is a mapping: `strategy="fedprox"`, `train={"lr": 0.3}`,
    `**{"train.lr": 0.3}`. Several values for a setting of one are swept: `seed=range(6)`. Own classes and functions stand for their
    names (`strategy=FedMine`, `task={"model": {"name": Net, "width": 32}}`), and parts for themselves (`uplink=TopK(0.01)`). What
    stands in a module can be resumed and replayed later; what stands in a notebook or script only there.

    Raises ScenarioError with all mistakes.
    """
    given = Given()
    tree = given.scenario(scenario) if isinstance(scenario, Mapping) else scenario
    puts = given.changes(changes)
    modules.update(given.modules)
    with handed():
        return Experiment(tuple(loader.load(tree, puts, smoke, sweeping=True)))
