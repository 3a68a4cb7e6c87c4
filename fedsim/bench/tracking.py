"""What MLflow costs a run: the same one with and without, whole processes that take turns."""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from fedsim.bench.figures import Figure, limit, say, seconds
from fedsim.bench.host import QUICKSTART

ROUNDS = 1000  # each evaluated


def tracked(trials: int) -> list[Figure]:
    """The quickstart with 1,000 evaluations: runs a minute with tracking beside none, and seconds of CPU that tracking takes.

    At most two pairs, whatever `trials`: each takes a minute.
    """
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "quickstart.yaml"
        file.write_text(QUICKSTART.replace("seconds: 20 min", f"rounds: {ROUNDS}") + "checkpoint: none\n")
        store = f"sqlite:///{place}/runs/mlflow.db"
        _spent(place, 2, store)  # the first one makes the store
        pairs = []
        for trial in range(min(trials, 2)):
            say(f"tracking: pair {trial + 1} of {min(trials, 2)}")
            pairs.append((_spent(place, ROUNDS, store), _spent(place, ROUNDS, "none")))
    with_it, without = (60 / median(side[0] for side in sides) for sides in zip(*pairs, strict=True))
    ratio = median(none[0] / some[0] for some, none in pairs)
    cpu = median(some[1] - none[1] for some, none in pairs)
    title = "a run of 1,000 evaluations"
    return [
        Figure(f"{title}, runs a minute, MLflow beside none", with_it, without, ratio, 0.98),
        limit(f"{title}: seconds of CPU for MLflow", max(1e-9, cpu), 6.0),
    ]


def _spent(place: str, rounds: int, store: str) -> tuple[float, float]:
    """Seconds that a run takes by the clock, and of CPU with all its processes."""
    words = [sys.executable, "-P", "-m", "fedsim", "run", f"{place}/quickstart.yaml", "--anew", "--quiet", "--runs", f"{place}/runs"]
    words += [f"stop.rounds={rounds}", f"track.uri={store}"]
    before = _cpu()
    wall = seconds(lambda: subprocess.run(words, check=True, capture_output=True))
    return wall, _cpu() - before


def _cpu() -> float:
    """Of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
