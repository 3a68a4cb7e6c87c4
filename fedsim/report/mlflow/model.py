"""A run's last model as MLflow keeps models: loaded by `mlflow.pytorch.load_model`, where fedsim and the user's own code are."""

import importlib.metadata
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fedsim import __version__
from fedsim.report.mlflow.facts import whose
from fedsim.report.mlflow.names import LONGEST
from fedsim.run.folders import RunFolder


def log_model(uri: str, run: RunFolder, run_id: str) -> None:
    """The one model of the run (of peers, each) for the run with this id, called like it, with the numbers of its last evaluation.

    Raises FedsimError where it can't be built again.
    """
    import mlflow
    import mlflow.pytorch

    from fedsim.run.modules import models_of

    models, step = models_of(run), int(run.metrics[-1]["round"]) if run.metrics else 0
    label = re.sub(r"[/:.%\"']", "_", run.label)[:LONGEST]  # which MLflow does not take here
    needed = [f"torch=={importlib.metadata.version('torch').partition('+')[0]}", f"fedsim=={__version__}"]
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with warnings.catch_warnings(), _stored_at(uri), mlflow.start_run(run_id=run_id):
        warnings.simplefilter("ignore")  # MLflow would rather have an example of the input
        for place, model in enumerate(models):
            mlflow.pytorch.log_model(
                model,
                name=label if len(models) == 1 else f"{label} node {place}",
                pip_requirements=needed,
                serialization_format="pickle",
                step=step,
                tags=whose(run),
            )


@contextmanager
def _stored_at(uri: str) -> Iterator[None]:
    """Meanwhile MLflow's own store, which it writes into the environment, where the next run would take it for the user's."""
    import mlflow

    name = "MLFLOW_TRACKING_URI"
    nothing: Any = None
    before = os.environ.get(name)
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(nothing)
        if before is not None:
            os.environ[name] = before
