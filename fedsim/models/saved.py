"""Numbers that were saved: read from safetensors files into modules."""

import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fedsim.base.errors import SettingError
from fedsim.models.pure import statistics
from fedsim.settings.anchored import roots

MODEL = "model.safetensors"  # that a run leaves in its folder


def numbers_of(file: Path, name: str, key: str) -> dict[str, Tensor]:
    """What a safetensors file holds; `name` is how the setting `key` calls it. Raises SettingError where it can't be read."""
    try:
        return safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        hint = "; PyTorch's own files may hold code: `safetensors.torch.save_file(module.state_dict(), FILE)` writes what can be read here"
        raise SettingError(key, f"`{name}` can't be read: {error}{hint if file.suffix in ('.pt', '.pth', '.bin') else ''}") from error


def fill(targets: Mapping[str, Tensor], maybe: Mapping[str, Tensor], found: Mapping[str, Tensor], file: Path, key: str, who: str) -> None:
    """Copies all of `targets`, and of `maybe` what was found, into `who`. Raises SettingError, naming the first that differs, before it."""
    for name, target in targets.items():
        if name not in found or found[name].shape != target.shape:
            has = f"in shape {list(found[name].shape)}" if name in found else f"not (it has {', '.join([*found][:5]) or 'nothing'} ...)"
            raise SettingError(key, f"`{name}` of shape {list(target.shape)} is needed, and {file.name} has it {has}")
    both = {**targets, **maybe}
    if unknown := sorted(name for name in found.keys() - both.keys() if not name.endswith("num_batches_tracked")):
        raise SettingError(key, f"{file.name} holds `{unknown[0]}`, which {who} has not")
    with torch.no_grad():
        for name in both.keys() & found.keys():
            both[name].copy_(found[name])


def place_of(name: str, base: Path) -> Path | None:
    """The file that `name` means: itself, or the model of a run, whose folder or name under runs/ it is; None where there is none.

    It is looked for beside the scenario (`base`), in the working folder, and under FEDSIM_DATA.
    """
    for root in (*roots(base)[0], Path()):
        for one in (name, f"runs/{name}", f"runs/{name}/latest"):
            file = root / Path(one).expanduser()
            if (file := file / MODEL if file.is_dir() else file).is_file():
                return Path(os.path.realpath(file))  # a link such as `latest` may lead elsewhere tomorrow
    return None


def begun(module: nn.Module, name: str | None, base: Path) -> nn.Module:
    """The module with the numbers that a file or run has for all that is trained and for its running statistics.

    Raises SettingError where there is no such file, or it is of another model.
    """
    if name is None:
        return module
    key = "task.weights"
    file = place_of(name, base)
    if file is None:
        raise SettingError(key, f"no model `{name}`: a safetensors file, or a run's folder or name with {MODEL}, is due{_runs(name, base)}")
    trained = {one: numbers for one, numbers in module.named_parameters() if numbers.requires_grad}
    renewed = {one: buffer for one, buffer in module.named_buffers() if one in statistics(module)[0].shapes}
    fill(
        trained | renewed,
        dict(module.named_parameters()) | dict(module.named_buffers()),
        numbers_of(file, name, key),
        file,
        key,
        "the model",
    )
    return module


def _runs(name: str, base: Path) -> str:
    """Which runs a sweep's folder has, each with a model of its own."""
    for root in (base, Path()):
        for one in (name, f"runs/{name}", f"runs/{name}/latest"):
            found = sorted(file.parent.name for file in (root / one).glob(f"*/{MODEL}") if (root / one / "sweep.json").is_file())
            if found:
                return f"; it is a sweep: {', '.join(f'{one}/{run}' for run in found[:3])}{' ...' if found[3:] else ''}"
    return ""
