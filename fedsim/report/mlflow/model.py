"""A run's last model as MLflow keeps models: loaded by `mlflow.pytorch.load_model`, where fedsim and the user's own code are."""

import importlib.metadata
import logging
import warnings

from fedsim import __version__
from fedsim.run.folders import RunFolder


def log_model(uri: str, run: RunFolder, run_id: str) -> None:
    """The one model of the run (of peers, each) for the run with this id. Raises FedsimError where it can't be built again."""
    import mlflow
    import mlflow.pytorch

    from fedsim.run.modules import models_of

    models = models_of(run)
    needed = [f"torch=={importlib.metadata.version('torch').partition('+')[0]}", f"fedsim=={__version__}"]
    mlflow.set_tracking_uri(uri)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with warnings.catch_warnings(), mlflow.start_run(run_id=run_id):
        warnings.simplefilter("ignore")  # MLflow would rather have an example of the input
        for place, model in enumerate(models):
            name = "model" if len(models) == 1 else f"model-{place}"
            mlflow.pytorch.log_model(model, name=name, pip_requirements=needed, serialization_format="pickle")
