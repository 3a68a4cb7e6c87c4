"""fedsim: federated and decentralized learning, simulated from one scenario.

`from fedsim import ...` gives what own strategies, schedules, losses and metrics are made of; nothing is imported before it is asked for.
"""

import os
from typing import Any

# Without it MKL picks kernels by the alignment of its arguments, and a row's bits would depend on where in a chunk it stands.
os.environ.setdefault("MKL_CBWR", "AUTO")

__version__ = "0.1.0"

FACE = {
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


def __getattr__(name: str) -> Any:
    if name not in FACE:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"fedsim.{FACE[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *FACE]
