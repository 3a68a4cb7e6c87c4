"""From a model's settings to a module that can be a row: built, tried, and made pure."""

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.base.errors import SettingError, blame
from fedsim.base.keys import fold
from fedsim.base.memory import afford
from fedsim.models import Episodes, Model, Pixels, Shape, Tokens
from fedsim.models.own import OwnModel
from fedsim.models.pixels import EachPixel, Fcn
from fedsim.models.policy import Rollout
from fedsim.models.pure import call_of, pure
from fedsim.task.loss import Loss


def built(settings: Model, shape: Shape, outputs: int, seed: int, dtype: torch.dtype = torch.float32, node: int | None = None) -> nn.Module:
    """The module, of `dtype`, initialised by the seed, or that of a node by its own key; its layers in their pure forms.

    Raises SettingError where it fails.
    """
    if isinstance(shape, Pixels) and not settings.pixels:
        raise SettingError("task.model", f"{settings.title()} has no outputs at each pixel, and targets are masks; `fcn` has them")
    if isinstance(settings, Fcn) and not isinstance(shape, Pixels):
        raise SettingError("task.model", f"{settings.title()} has outputs at each pixel, and targets are no masks of images")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(fold(seed, "model", *([] if node is None else [node]))) & (2**63 - 1))
        try:
            _affordable(settings, shape, outputs)
            module = settings.build(shape, outputs).to(dtype)
            if isinstance(shape, Episodes):
                module = Rollout(module, shape.environment)
            return pure(EachPixel(module) if isinstance(shape, Pixels) else module)
        except SettingError:
            raise
        except Exception as error:
            raise SettingError("task.model", f"{settings.title()} raised {blame(error)}") from error


COPIES = 8  # of its parameters, at least: the first model, the state, what a job hears, makes and sends


def _affordable(settings: Model, shape: Shape, outputs: int) -> None:
    """Raises SettingError where memory has no room for a model of fedsim's own, which is built without numbers to see its size."""
    if isinstance(settings, OwnModel) or any(getattr(one, "weights", None) for one in (settings, getattr(settings, "inner", None))):
        return  # whose numbers lie in a file have room there
    try:
        with torch.device("meta"):
            numbers = sum(p.numel() for p in settings.build(shape, outputs).parameters())
    except (NotImplementedError, OSError):  # it reads a file, or looks at its numbers
        return
    except RuntimeError as error:
        if "overflow" not in str(error) and "too large" not in str(error):
            return
        raise SettingError("task.model", f"{settings.title()} has more parameters than can be counted") from error
    afford(4 * COPIES * numbers, "task.model", f"{settings.title()} with {numbers:,} parameters")


def check(settings: Model, module: nn.Module, shape: Shape, x: Tensor, outputs: int) -> None:
    """Tries the module on some samples x. Raises SettingError where it fails, gives too few outputs, or can't be a row."""
    each = (isinstance(shape, Tokens) and shape.each) or isinstance(shape, Pixels)
    outputs = Rollout.outputs if isinstance(shape, Episodes) else outputs  # it asks for the policy's itself
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            result = module(x)
        except Exception as error:
            raise SettingError("task.model", f"{settings.title()} raised {blame(error)}") from error
        lead = [len(x), shape[-2] * shape[-1]] if isinstance(shape, Pixels) else list(x.shape[: 1 + each])
        found = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
        if not isinstance(result, Tensor) or list(result.shape[: len(lead)]) != lead or result.shape[len(lead) :].numel() < outputs:
            due = f"{outputs} outputs" + (" at each place" if each else "")
            raise SettingError("task.model", f"{settings.title()} gives {found} for {len(x)} samples, but {due} are needed")
        if problem := unfit(module, x):
            raise SettingError("task.model", f"{settings.title()} {problem}")


def check_loss(loss: Loss, module: nn.Module, x: Tensor, targets: Tensor) -> None:
    """Tries the loss on what the module makes of some samples x. Raises SettingError where it fails, or gives not one number a sample."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        outputs = module(x).detach().requires_grad_()
        try:
            found = loss(outputs, targets)
        except SettingError:
            raise
        except Exception as error:
            given = f"on outputs {list(outputs.shape)} and targets {list(targets.shape)}"
            raise SettingError("task.loss", f"`{loss.name}` raised {blame(error)} {given}") from error
    if not isinstance(found, Tensor) or found.shape != (len(x),) or not found.is_floating_point():
        what, hint = type(found).__name__, ""
        if isinstance(found, Tensor):
            what = f"{str(found.dtype).removeprefix('torch.')} of shape {list(found.shape)}"
            hint = "" if found.dim() else "; a mean over samples is taken later, with their weights"
        raise SettingError("task.loss", f"`{loss.name}` gives {what} for {len(x)} samples, and one number a sample is due{hint}")
    if loss.differentiable and not found.requires_grad:
        what = "does not depend on the outputs in a way that has a gradient (`argmax`, `detach`, `item`)"
        raise SettingError("task.loss", f"`{loss.name}` {what}; one that needs none says `differentiable = False`")


def unfit(module: nn.Module, x: Tensor) -> str | None:
    """What keeps a module from being a row that gives the same numbers however rows are grouped; None where nothing does."""
    if not any(p.requires_grad for p in module.parameters()):
        return "has no trainable parameter"
    before, random, call = {name: buffer.clone() for name, buffer in module.named_buffers()}, torch.random.get_rng_state(), call_of(module)
    if call is None:
        module(x)
    else:
        with call.training(torch.ones(len(x)), torch.tensor(0)):
            module(x)
    written = next((name for name, buffer in module.named_buffers() if not _same(buffer, before[name])), None)
    if written is not None:
        return f"writes its buffer `{written}` in training, and rows hold parameters only: use GroupNorm or torch's own BatchNorm"
    if not torch.equal(torch.random.get_rng_state(), random):
        return "draws from torch's own generator in training; keyed are nn.Dropout, Dropout1d to 3d and recurrent layers of one direction"
    return None


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and np.array_equal(one.cpu().numpy(), other.cpu().numpy(), equal_nan=one.is_floating_point())


def looks_up(module: nn.Module) -> bool:
    """Does the module embed whole numbers?"""
    return any(isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in module.modules())
