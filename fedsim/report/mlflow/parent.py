"""What a sweep's own run in MLflow tells of its runs: means over seeds, which MLflow draws nowhere, and the settings that differ."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from fedsim.report.figures.curves import band, points
from fedsim.report.style import variants_of
from fedsim.run.folders import RunFolder

MOST = 500  # points of a curve
SHOWN = ("accuracy", "loss")  # how the last part of a metric's name begins


def over_seeds(runs: Sequence[RunFolder]) -> Iterator[tuple[str, int, float]]:
    """(name, round, value): `mean/test/accuracy/VARIANT`, and `mean_low/` and `mean_high/` one deviation aside, of finished runs.

    Along rounds that all seeds of a variant cover; of a single seed there is no deviation.
    """
    names = dict.fromkeys(name for run in runs for record in run.metrics[:1] for name in record)
    for metric in (name for name in names if name.rpartition("/")[2].startswith(SHOWN)):
        for variant in variants_of(runs):
            lines = [line for run in variant.finished if len((line := points(run, "round", metric))[0])]
            if not lines:
                continue
            x, mean, deviation = band(lines) if len(lines) > 1 else (*lines[0], np.zeros(0))
            some = np.unique(np.linspace(0, len(x) - 1, min(MOST, len(x))).round().astype(np.int64))
            sides = {"mean": mean} | ({"mean_low": mean - deviation, "mean_high": mean + deviation} if len(lines) > 1 else {})
            for side, values in sides.items():
                yield from ((f"{side}/{metric}/{variant.name}", int(x[at]), float(values[at])) for at in some)


def differing(runs: Sequence[RunFolder]) -> dict[str, str]:
    """By dotted key the values of the settings that are not the same in all runs, each once: `0.1, 0.3`."""
    keys = dict.fromkeys(key for run in runs for key in run.parameters)
    values = {key: list(dict.fromkeys(run.parameters.get(key, "-") for run in runs)) for key in keys}
    return {key: ", ".join(some) for key, some in values.items() if len(some) > 1}


def data_of(run: RunFolder) -> Mapping[str, str]:
    """What MLflow calls a dataset: the data that a run was trained on, by its hash."""
    settings = run.parameters
    name = settings.get("task.data") or settings.get("task.data.name") or "data"
    return {
        "name": Path(name).name[:500],
        "digest": str(run.info.get("data") or "")[:36],
        "source": ", ".join(
            f"{key.removeprefix('task.')}: {text}" for key, text in settings.items() if key.startswith(("task.data", "task.partition"))
        ),
        "profile": f'{{"nodes": {int(run.info.get("nodes") or 0)}}}',
    }
