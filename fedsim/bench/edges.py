"""What edge servers cost beside one server that hears all nodes itself."""

import tempfile
from functools import partial
from pathlib import Path

from fedsim.bench.figures import Figure
from fedsim.bench.plain import Workload
from fedsim.bench.runs import opened, rate, side_by_side

EDGES = 10
WORKLOADS = {"MLP": Workload("{name: mlp, hidden: [200]}", 50, 2), "logistic": Workload("logistic", 100, 20)}


def hierarchy(trials: int) -> list[Figure]:
    """Client-steps a second of ten edge servers that report each fifth round, beside FedAvg with as many clients a round."""
    figures = []
    for model, workload in WORKLOADS.items():
        title, flat = f"ten edge servers beside FedAvg, {model}", workload.text()
        edged = flat.replace(
            f"{{name: rounds, cohort: {workload.cohort}}}",
            f"{{name: hierarchy, edges: {EDGES}, every: 5, cohort: {workload.cohort // EDGES}}}",
        )
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            runs = opened(Path(first), edged), opened(Path(second), flat)
            found = side_by_side(title, trials, *(partial(rate, run, 5 * workload.rounds) for run in runs))
            for run in runs:
                run.close("finished")
        figures.append(Figure(title, *found, 0.95))
    return figures
