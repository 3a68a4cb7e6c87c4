"""From settings to a task: reads, checks, splits and builds, all randomness keyed by the task's seed."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, permutation
from fedsim.base.rows import Layout
from fedsim.data.arrays import Array, Arrays, complaint
from fedsim.data.augment import check_all
from fedsim.data.given import given_by
from fedsim.data.partition import Ints, Keys, Partition
from fedsim.data.shift import Facts, bind
from fedsim.models import Shape, Tokens
from fedsim.models.pure import statistics
from fedsim.models.saved import begun
from fedsim.settings.values import Count, Population, blocks
from fedsim.task.first import first_models
from fedsim.task.fit import built, check, check_loss, looks_up
from fedsim.task.loss import CrossEntropy, Loss, SquaredError
from fedsim.task.settings import TaskSettings
from fedsim.task.task import Drawn, Task, decoded
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
    loss = settings.loss or (SquaredError() if arrays.y.dtype.kind == "f" else CrossEntropy())
    arrays = _whole_classes(arrays) if loss.classes else arrays
    alone = arrays.x_test is None
    if alone:
        for name, array in (("x", arrays.x), ("y", arrays.y)):
            if array.dtype.kind == "f":
                _check_finite(array, name)  # while rows have the numbers that the user knows
        arrays = held_out(arrays, fold(seed, "test"))
    given = given_by(arrays, alone, settings.loss is not None)
    vocabulary = vocabulary_of(arrays, settings.model)
    targets, test_targets, classes, names = _targets(arrays, loss, vocabulary, dtype)
    for one in (targets, test_targets):
        loss.check(torch.from_numpy(one))
    x, x_test = (token_samples(*one, vocabulary) if vocabulary else samples(*one, dtype) for one in _named(arrays))
    if x.shape[1:] != x_test.shape[1:]:
        raise complaint(f"samples of x have shape {list(x.shape[1:])}, those of x_test {list(x_test.shape[1:])}")
    own, starts, test_owner = _shared_out(settings.partition, targets, classes, arrays, seed)
    outputs = loss.outputs(classes) if classes else int(np.prod(targets.shape[1:]))
    each = classes > 0 and targets.ndim == 2
    shape: Shape = Tokens(x.shape[1], vocabulary or classes, each) if vocabulary or each else tuple(x.shape[1:])
    model = begun(built(settings.model.anchored(base), shape, outputs, seed, dtype), settings.weights, base)
    if not vocabulary and looks_up(model) and arrays.x.dtype.kind in "iu":
        x, x_test = whole_numbers(arrays.x), whole_numbers(_there(arrays.x_test))
    check(settings.model, model, shape, decoded(x[:2]), outputs)
    check_loss(loss, model, decoded(x[:2]), torch.from_numpy(targets[:2]))
    layout, (buffers, first_buffers) = Layout.of(model), statistics(model)
    people = Population(len(starts) - 1, _groups(groups, len(starts) - 1))
    check_all(settings.augment, tuple(x.shape[1:]), x.is_floating_point() or x.dtype == torch.uint8)
    facts = Facts(tuple(x.shape[1:]), x.is_floating_point() or x.dtype == torch.uint8, 0 if each else classes)
    return Task(
        inputs=x,
        targets=torch.from_numpy(targets),
        samples=own,
        starts=starts,
        test_inputs=x_test,
        test_targets=torch.from_numpy(test_targets),
        test_owner=test_owner,
        model=model,
        layout=layout,
        init=layout.join({name: p.detach() for name, p in model.named_parameters()}),
        loss=loss,
        classes=classes,
        groups=dict(people.groups),
        each=first_models(settings, shape, outputs, len(starts) - 1, seed, base, layout, dtype),
        buffers=buffers,
        first_buffers=first_buffers,
        shifts=bind(settings.shift, facts, people, fold(seed, "shift")),
        augment=settings.augment,
        given=dataclasses.replace(given, names=names, stray_ids=_stray(settings.partition, arrays, test_owner)),
    )


def by_node(owner: Ints, nodes: int) -> tuple[Tensor, Tensor]:
    """Sample numbers sorted by node, without those of no node, and where each node's begin: int64 [in use] and [nodes + 1]."""
    order = np.argsort(owner, kind="stable")[np.count_nonzero(owner < 0) :]
    starts = np.concatenate([[0], np.cumsum(np.bincount(owner[owner >= 0], minlength=nodes))])
    return torch.from_numpy(order), torch.from_numpy(starts)


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
    return dataclasses.replace(arrays, x=arrays.x[:, keep], x_test=x_test, columns=())


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


def _stray(partition: Partition, arrays: Arrays, test_owner: Tensor | None) -> str:
    """The name of the partition's ids where test samples have such ids, but none that a node has."""
    by, owns = getattr(partition, "by", None), type(partition).split_test is not Partition.split_test
    return by if isinstance(by, str) and owns and test_owner is None and by in arrays.test_keys else ""


def held_out(arrays: Arrays, key: Tensor) -> Arrays:
    """A fifth of each class, by lot, becomes the test set (of all samples where targets are no classes)."""
    one_class = arrays.y.dtype.kind != "f" and not are_next(arrays.y, arrays.x)
    labels = arrays.y.reshape(len(arrays.y), -1)[:, 0] if one_class else np.zeros(len(arrays.y))
    test = np.zeros(len(arrays.y), dtype=np.bool_)
    test[np.lexsort((permutation(key, len(labels)).numpy(), labels))[4::5]] = True
    if not test.any():
        raise complaint(f"{len(test)} samples are too few to hold out a test set: give x_test and y_test")
    keys, test_keys = ({name: ids[part] for name, ids in arrays.keys.items()} for part in (~test, test))
    return dataclasses.replace(
        arrays, x=arrays.x[~test], y=arrays.y[~test], x_test=arrays.x[test], y_test=arrays.y[test], keys=keys, test_keys=test_keys
    )


def _named(arrays: Arrays) -> list[tuple[Array, str]]:
    return [(arrays.x, "x"), (_there(arrays.x_test), "x_test")]


def _there(array: Array | None) -> Array:
    assert array is not None
    return array


def samples(x: Array, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """[N, ...] float32, or uint8 as it is (see `decoded`); images channels first. Raises SettingError for no numbers, NaN, infinity.

    Where `dtype` is float64 all are, and bytes are decoded at once.

    Channels are the last of four axes if it has 1, 3 or 4 entries; where the second could be them too, of bytes only. Bytes of three
    axes are images of one channel.
    """
    if x.dtype.kind not in "iufb":
        first = f" (first: {x.reshape(-1)[0]})" if x.size else ""
        raise complaint(f"{name} holds no numbers but {x.dtype}{first}")
    if x.dtype == np.uint8:
        values: Array = x[:, None] if x.ndim == 3 else x
    else:
        values = _narrowed(x, name, dtype)
    if values.ndim == 4 and values.shape[3] in (1, 3, 4) and (x.dtype == np.uint8 or values.shape[1] not in (1, 3, 4)):
        values = values.transpose(0, 3, 1, 2)
    found = torch.from_numpy(np.ascontiguousarray(values if values.ndim > 1 else values[:, None]))
    return found.to(dtype) / 255 if x.dtype == np.uint8 and dtype == torch.float64 else found


def _narrowed(x: Array, name: str, dtype: torch.dtype) -> Array:
    """Of `dtype`. Raises SettingError for NaN, infinity, and numbers that are too large."""
    with np.errstate(over="ignore"):
        values = x.astype(np.float64 if dtype == torch.float64 else np.float32)
    large = np.argwhere(np.isfinite(x) & ~np.isfinite(values))
    _check_finite(values, name, f"; {x.item(*large[0]):.3g} is too large for {str(dtype).removeprefix('torch.')}" if len(large) else "")
    return values


def _check_finite(values: Array, name: str, note: str = "") -> None:
    finite = np.isfinite(values.reshape(len(values), -1))
    bad = np.flatnonzero(~finite.all(1))
    if len(bad):
        more = f" and in {len(bad) - 1} more" if len(bad) > 1 else ""
        columns = np.flatnonzero(~finite.all(0))
        where = f"; all in column {columns[0]}" if values.ndim == 2 and len(columns) == 1 < finite.shape[1] else ""
        raise complaint(f"{name} has NaN or infinity in row {bad[0]} (the first row is 0){more}{where}{note}")


def _targets(arrays: Arrays, loss: Loss, vocabulary: int, dtype: torch.dtype) -> tuple[Array, Array, int, tuple[str, ...]]:
    """Targets, test targets, number of classes and their names: int64 from 0 for a loss on classes, else of `dtype` and 0 classes.

    Next tokens, whose classes are the vocabulary, have one at each place of a sample, -1 where there is none.
    """
    y, y_test = arrays.y, _there(arrays.y_test)
    if loss.classes and are_next(y, arrays.x):
        classes = vocabulary or int(max(y.max(), y_test.max())) + 1
        return next_tokens(y, arrays.x, "y", classes), next_tokens(y_test, arrays.x_test, "y_test", classes), classes, ()
    y, y_test = (y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y for y in (y, y_test))
    if not loss.classes:
        if "U" in (y.dtype.kind, y_test.dtype.kind):
            raise complaint(f"y holds texts, and {loss.name} takes numbers")
        return _narrowed(y, "y", dtype), _narrowed(y_test, "y_test", dtype), 0, ()
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


def _shared_out(
    partition: Partition, targets: Array, classes: int, arrays: Arrays, seed: int
) -> tuple[Tensor | Drawn, Tensor, Tensor | None]:
    """Samples, where each node's begin, and owners of the test samples: as a task has them."""
    counts = partition.draws(fold(seed, "partition"))
    if counts is not None:
        if counts.dtype.kind not in "iu" or counts.ndim != 1 or not len(counts) or counts.min() < 1:
            raise SettingError("task.partition", f"{partition.name} gives no whole number of samples, 1 or more, to each node")
        starts = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))
        return Drawn(fold(seed, "partition", "samples"), len(targets)), starts, None
    by = getattr(partition, "by", None)
    if isinstance(by, str) and by not in arrays.keys and by in arrays.shapes:
        what = f"`{by}` has shape {list(arrays.shapes[by])}, and one id for each of the {len(targets)} training samples is due"
        raise SettingError("task.partition.by", what)
    owner, nodes = _split(partition, targets, classes, arrays.keys, seed)
    test_owner = partition.split_test(arrays.keys, owner, arrays.test_keys)
    return *by_node(owner, nodes), None if test_owner is None else torch.from_numpy(test_owner)


def _split(partition: Partition, targets: Array, classes: int, keys: Keys, seed: int) -> tuple[Ints, int]:
    """Node of each sample and number of nodes, which each have a sample."""
    if partition.by_label and not classes:
        raise SettingError("task.partition", f"{partition.name} splits by class, and the targets are no classes")
    if partition.nodes is not None and partition.nodes > len(targets):
        raise SettingError("task.partition.nodes", f"{partition.nodes} nodes, but only {len(targets)} training samples")
    if partition.by_label and targets.ndim > 1:
        raise SettingError("task.partition", f"{partition.name} splits by class, and a sample of this task has one at each of its places")
    labels = targets if classes and targets.ndim == 1 else np.zeros(len(targets), dtype=np.int64)
    try:
        owner = np.asarray(partition.split(labels, keys, fold(seed, "partition")))
    except SettingError:
        raise
    except Exception as error:
        raise SettingError("task.partition", f"{partition.name} raised {type(error).__name__}: {error}") from error
    if owner.shape != labels.shape or owner.dtype.kind not in "iu":
        raise SettingError("task.partition", f"{partition.name} gave {owner.dtype} of shape {list(owner.shape)}, not one node a sample")
    nodes = int(owner.max()) + 1 if partition.nodes is None else partition.nodes
    empty = np.flatnonzero(np.bincount(owner[owner >= 0], minlength=nodes)[:nodes] == 0)
    if owner.max() >= nodes or len(empty) or not nodes:
        raise SettingError("task.partition", _complaint(partition, owner, nodes, empty))
    return owner.astype(np.int64), nodes


def _complaint(partition: Partition, owner: Ints, nodes: int, empty: Ints) -> str:
    if not nodes:
        return f"{partition.name} leaves no node any sample"
    if owner.max() >= nodes:
        return f"{partition.name} gave a sample to node {owner.max()} of {nodes} (the first is 0)"
    some = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
    return f"{partition.name} gives no sample to {len(empty)} of {nodes} nodes: {some}"
