"""From settings to a task: reads, checks, splits and builds, all randomness keyed by the task's seed."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.data.arrays import Array, Arrays, complaint
from fedsim.data.augment import check_all
from fedsim.data.given import given_by
from fedsim.data.partition import Partition
from fedsim.data.shift import Facts, bind
from fedsim.models import Episodes, Model, Pixels, Shape, Tokens
from fedsim.models.pure import statistics
from fedsim.models.saved import begun
from fedsim.settings.values import Count, Population, blocks
from fedsim.task.architectures import Architecture, blamed, kinds_of, together
from fedsim.task.first import first_models
from fedsim.task.fit import built, check, check_loss, looks_up
from fedsim.task.held import held_out, shown_to_all
from fedsim.task.loss import CrossEntropy, Loss, SquaredError
from fedsim.task.losses import Regret
from fedsim.task.masks import are_masks, masks, without
from fedsim.task.numbers import check_finite, narrowed, samples
from fedsim.task.settings import TaskSettings
from fedsim.task.split import shared_out, stray
from fedsim.task.task import Task, decoded
from fedsim.task.tokens import are_next, next_tokens, token_samples, vocabulary_of, whole_numbers


def build_task(
    settings: TaskSettings,
    seed: int,
    groups: Mapping[str, Count | str],
    base: Path,
    dtype: torch.dtype = torch.float32,
    arrays: Arrays | None = None,
) -> Task:
    """The task of a scenario; `base` is its folder, `seed` its `task.seed` or else its seed, `dtype` that of samples, targets and models.
    `arrays` are its data where they are read already.

    Raises SettingError, with the key to blame, where the data, the split, the model or the groups can't be used.
    """
    arrays = _without_ids(arrays or settings.data.load(base), settings.partition)
    _check_lengths(arrays)
    loss = settings.loss or _usual_loss(arrays)
    arrays, alone = _labelled(arrays, loss, settings.ignore), arrays.x_test is None
    arrays = (_tested(arrays, fold(seed, "test")) if alone else arrays).ready()
    arrays, public = settings.public.of(arrays, base, fold(seed, "public")) if settings.public else (arrays, None)
    given = given_by(arrays, alone, settings.loss is not None)
    vocabulary = vocabulary_of(arrays, settings.model)
    targets, test_targets, classes, names = _targets(arrays, loss, vocabulary, dtype)
    for one in (targets, test_targets):
        loss.check(torch.from_numpy(one))

    def read(array: Array, name: str) -> Tensor:
        return token_samples(array, name, vocabulary) if vocabulary else samples(array, name, dtype)

    x, x_test = (read(*one) for one in _named(arrays))
    if x.shape[1:] != x_test.shape[1:]:
        raise complaint(f"samples of x have shape {list(x.shape[1:])}, those of x_test {list(x_test.shape[1:])}")
    shown = x[:0] if public is None else shown_to_all(public, x, read)
    own, starts, test_owner = shared_out(settings.partition, targets, classes, arrays, seed)
    outputs = loss.outputs(classes) if classes else int(np.prod(targets.shape[1:]))
    outputs = arrays.environment.actions if arrays.environment else outputs
    each, masked = classes > 0 and targets.ndim == 2, classes > 0 and are_masks(arrays.y, arrays.x)
    shape = _shape(arrays, x, masked, vocabulary or (classes if each and not masked else 0), each)
    people = Population(len(starts) - 1, _groups(groups, len(starts) - 1))
    kinds = kinds_of(settings.model, settings.models, people)
    if settings.weights and len(kinds) > 1:
        raise SettingError("task.weights", "these are of one model, and groups have others (`task.models`)")
    with blamed(kinds[0][0]):
        model = begun(built(kinds[0][1].anchored(base), shape, outputs, seed, dtype), settings.weights, base)
    if not vocabulary and looks_up(model) and arrays.x.dtype.kind in "iu":
        x, x_test, shown = (whole_numbers(one) for one in (arrays.x, _there(arrays.x_test), arrays.x[:0] if public is None else public))
    some, wanted = decoded(x[:2]), torch.from_numpy(targets[:2])
    with blamed(kinds[0][0]):
        check(kinds[0][1], model, shape, some, outputs)
        check_loss(loss, model, some, wanted)

    def another(of: Model) -> nn.Module:
        found = built(of.anchored(base), shape, outputs, seed, dtype)
        check(of, found, shape, some, outputs)
        return found

    architectures, which = together(model, kinds, people.nodes, some, another)
    first, (buffers, first_buffers) = Architecture.of(kinds[0][0], model), statistics(model)
    facts = _suited(settings, x, masked, 0 if each else classes)
    return Task(
        inputs=x,
        targets=torch.from_numpy(targets),
        samples=own,
        starts=starts,
        test_inputs=x_test,
        test_targets=torch.from_numpy(test_targets),
        test_owner=test_owner,
        model=model,
        layout=first.layout,
        init=first.init,
        loss=loss,
        classes=classes,
        groups=dict(people.groups),
        each=first_models(settings, shape, outputs, len(starts) - 1, seed, base, first.layout, dtype),
        buffers=buffers,
        first_buffers=first_buffers,
        shifts=bind(settings.shift, facts, people, fold(seed, "shift")),
        augment=settings.augment,
        public=shown,
        architectures=architectures,
        architecture=which,
        given=dataclasses.replace(given, names=names, stray_ids=stray(settings.partition, arrays, test_owner)),
    )


def _labelled(arrays: Arrays, loss: Loss, ignore: int | None) -> Arrays:
    """With targets as the loss takes them: whole numbers for one on classes, -1 where none counts."""
    if not loss.classes:
        if ignore is not None:
            raise SettingError("task.ignore", f"is of classes, and the targets are numbers under {loss.name}")
        return arrays
    if arrays.environment:
        raise SettingError("task.loss", f"{loss.name} is of classes, and episodes have returns; `regret` is of these")
    arrays = _whole_classes(arrays)
    y_test = None if arrays.y_test is None else without(arrays.y_test, ignore)
    return dataclasses.replace(arrays, y=without(arrays.y, ignore), y_test=y_test)


def _tested(arrays: Arrays, key: Tensor) -> Arrays:
    """With a test set held out, after a look at the numbers while rows are those that the user knows; gaps of a table are filled later."""
    for name, array in (("x", arrays.x), ("y", arrays.y)):
        if array.dtype.kind == "f":
            check_finite(np.nan_to_num(array, posinf=np.inf, neginf=-np.inf) if arrays.scaling and name == "x" else array, name)
    return held_out(arrays, key)


def _shape(arrays: Arrays, x: Tensor, masked: bool, vocabulary: int, each: bool) -> Shape:
    """What a model is told of a sample; `vocabulary` of token numbers (0: it has none), with an output due at `each` place."""
    if arrays.environment:
        return Episodes(arrays.environment)
    if vocabulary:
        return Tokens(x.shape[1], vocabulary, each)
    return Pixels(x.shape[1:]) if masked else tuple(x.shape[1:])


def _suited(settings: TaskSettings, x: Tensor, masked: bool, classes: int) -> Facts:
    """What shifts know of samples. Raises SettingError where one, or what training makes of samples, does not suit them."""
    shape, quantities = tuple(x.shape[1:]), x.is_floating_point() or x.dtype == torch.uint8
    check_all(settings.augment, shape, quantities, masked)
    if moving := [f"{place}.name" for place, one in enumerate(settings.shift) if masked and one.moves]:
        raise SettingError(f"task.shift.{moving[0]}", "moves pixels, and their masks would stay where they are")
    return Facts(shape, quantities, classes)


def _usual_loss(arrays: Arrays) -> Loss:
    if arrays.environment:
        return Regret()
    return SquaredError() if arrays.y.dtype.kind == "f" else CrossEntropy()


def _groups(groups: Mapping[str, Count | str], nodes: int) -> dict[str, range]:
    try:
        return blocks(groups, nodes)
    except ValueError as error:
        raise SettingError("groups", str(error)) from error


def _without_ids(arrays: Arrays, partition: Partition) -> Arrays:
    """A table's samples without the column by which nodes are told apart."""
    by = getattr(partition, "by", None)
    if by not in arrays.columns or type(partition).split_test is Partition.split_test:
        return arrays
    keep = np.array([name != by for name in arrays.columns])
    if not keep.any():
        raise SettingError("task.partition.by", f"`{by}` is the only column, and samples without it have no numbers")
    x_test = None if arrays.x_test is None else arrays.x_test[:, keep]
    scaling = arrays.scaling and arrays.scaling.without(~keep)
    return dataclasses.replace(arrays, x=arrays.x[:, keep], x_test=x_test, columns=(), scaling=scaling)


def _check_lengths(arrays: Arrays) -> None:
    for x, y, name in ((arrays.x, arrays.y, ""), (arrays.x_test, arrays.y_test, "_test")):
        if x is None or y is None:
            continue
        if len(x) != len(y):
            turned = "; is x transposed?" if x.ndim == 2 and x.shape[1] == len(y) else ""
            raise complaint(f"x{name} has {len(x)} samples, y{name} {len(y)}{turned}")
        if not len(x):
            raise complaint(f"x{name} has no samples")
        if not x.size or not y.size:
            raise complaint(f"a sample of {'x' if not x.size else 'y'}{name} has no numbers: shape {list((y if x.size else x).shape)}")


def _whole_classes(arrays: Arrays) -> Arrays:
    """Labels that are whole numbers written as floats as what they are, for a loss on classes."""
    both = [y for y in (arrays.y, arrays.y_test) if y is not None]
    if any(y.dtype.kind not in "iubf" or not np.isfinite(y).all() or (y != np.rint(y)).any() for y in both):
        return arrays
    if not any(y.dtype.kind == "f" for y in both):
        return arrays
    y_test = None if arrays.y_test is None else arrays.y_test.astype(np.int64)
    return dataclasses.replace(arrays, y=arrays.y.astype(np.int64), y_test=y_test)


def _named(arrays: Arrays) -> list[tuple[Array, str]]:
    return [(arrays.x, "x"), (_there(arrays.x_test), "x_test")]


def _there(array: Array | None) -> Array:
    assert array is not None
    return array


def _targets(arrays: Arrays, loss: Loss, vocabulary: int, dtype: torch.dtype) -> tuple[Array, Array, int, tuple[str, ...]]:
    """Targets, test targets, number of classes and their names: int64 from 0 for a loss on classes, else of `dtype` and 0 classes.

    Next tokens, whose classes are the vocabulary, have one at each place of a sample, -1 where there is none.
    """
    y, y_test = arrays.y, _there(arrays.y_test)
    if loss.classes and are_next(y, arrays.x):
        classes = vocabulary or int(max(y.max(), y_test.max())) + 1
        return next_tokens(y, arrays.x, "y", classes), next_tokens(y_test, arrays.x_test, "y_test", classes), classes, ()
    if loss.classes and are_masks(y, arrays.x):
        return masks(arrays)
    y, y_test = (y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y for y in (y, y_test))
    if not loss.classes:
        if "U" in (y.dtype.kind, y_test.dtype.kind):
            raise complaint(f"y holds texts, and {loss.name} takes numbers")
        return narrowed(y, "y", dtype), narrowed(y_test, "y_test", dtype), 0, ()
    if y.ndim != 1 or y.dtype.kind not in "iubUS":
        raise SettingError("task.loss", f"{loss.name} takes one class a sample; y holds {y.dtype} of shape {list(y.shape)}{_hint(y)}")
    both = np.concatenate([y, y_test])
    if both.dtype.kind in "iu" and 0 <= both.min() <= both.max() < len(both):
        return y.astype(np.int64), y_test.astype(np.int64), int(both.max()) + 1, arrays.names
    names, numbers = np.unique(both, return_inverse=True)  # -1 and 1, numbers with wide gaps, or names of classes
    return numbers[: len(y)], numbers[len(y) :], len(names), tuple(map(str, names.tolist()))


def _hint(y: Array) -> str:
    """What to do with targets that are no classes."""
    if y.ndim == 1 and y.dtype.kind == "f":
        return ", and not only whole numbers"
    one_hot = y.ndim == 2 and y.dtype.kind in "iufb" and ((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all()
    return ", one 1 a row: `y.argmax(1)` makes classes of it" if one_hot else ""
