"""fedsim: federated and decentralized learning, simulated from one scenario.

`load`, `runs` and `compare` are for notebooks; the rest is what own strategies, schedules, losses and metrics are made of. Nothing is
imported before it is asked for.
"""

import os
from typing import Any

# Without it MKL picks kernels by the alignment of its arguments, and a row's bits would depend on where in a chunk it stands.
os.environ.setdefault("MKL_CBWR", "AUTO")

__version__ = "0.1.0"

PARTS = {
    "Inbox": "method.inbox",
    "Local": "method.local",
    "Loss": "task.loss",
    "Metric": "metrics.metrics",
    "News": "schedule.news",
    "Rows": "base.rows",
    "Schedule": "schedule.base",
    "Strategy": "method.strategy",
    "Verbs": "schedule.verbs",
    "View": "metrics.view",
    "setting": "settings.part",
}
FACE = PARTS | {
    "Experiment": "api.experiment",
    "Result": "api.results",
    "Results": "api.results",
    "compare": "api.results",
    "load": "api.experiment",
    "runs": "api.results",
}


def __getattr__(name: str) -> Any:
    if name not in FACE:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"fedsim.{FACE[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *FACE]
