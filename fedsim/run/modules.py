"""A run's last or best models as modules of PyTorch."""

import copy

import safetensors.torch
from torch import nn

from fedsim.base.errors import FedsimError
from fedsim.run.building import Tasks
from fedsim.run.folders import BEST, LAST, RunFolder
from fedsim.run.resume import reload


def models_of(run: RunFolder, name: str = LAST) -> list[nn.Module]:
    """The server's, or one a peer. Raises FedsimError where the run has no such file (yet), or its task can't be built."""
    file = run.path / name
    if not file.exists():
        raise FedsimError(f"{run.path}: no {'best model: see `evaluate.best`' if name == BEST else 'model yet'} ({run.status})")
    task = Tasks().get(reload(run.path))
    try:
        weights = safetensors.torch.load_file(file)
        shapes = {**task.layout.shapes, **task.buffers.shapes}
        several = any(weights[name].dim() > len(shape) for name, shape in shapes.items())
        number = len(next(iter(weights.values()))) if several else 1
        models = [copy.deepcopy(task.model).eval() for _ in range(number)]
        for place, model in enumerate(models):
            model.load_state_dict({name: rows[place] if several else rows for name, rows in weights.items()}, strict=False)
    except Exception as error:  # whatever the library says of a file that is not its own
        raise FedsimError(f"{file}: broken, or of another model ({str(error).splitlines()[0]})") from error
    return models
