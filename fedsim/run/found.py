"""What was found: the block of lines that says what a run learns from, before it starts."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.text import count, counted, short_percent
from fedsim.data.source import Source
from fedsim.models.policy import Rollout
from fedsim.scenario.parts import part_name
from fedsim.task.task import Task

NAMED = 8  # classes that are named one by one


def found(task: Task, data: Source) -> list[str]:
    """Lines on the samples from a source, their targets, and the nodes and who has test samples."""
    counts = task.counts.cpu().numpy()
    if task.elsewhere:
        rows = f"its nodes' own: {count(int(counts.sum()))} rows; {count(len(task.test_inputs))} for testing here; {_each(task)}"
        return [f"  data      {rows}", f"  targets   {_targets(task)}", _nodes(counts)]
    name = " ".join([part_name(data), *([str(data.file)] if hasattr(data, "file") else [])])
    return [
        f"  data      {name}: {_samples(task)}{_note(task)}",
        f"  targets   {_targets(task)}",
        f"  tests     {_tests(task)}",
        _nodes(counts),
    ]


def _nodes(counts: NDArray[np.int64]) -> str:
    return f"  nodes     {count(len(counts))}; samples a node {counts.min()} to {counts.max():,}, median {np.median(counts):g}"


def class_name(task: Task, number: int) -> str:
    """What the source calls a class."""
    names = task.given.names if task.given else ()
    return names[number] if names else str(number)


def test_nodes(task: Task) -> int:
    """How many nodes have test samples of their own; where these belong to nobody, none."""
    return 0 if task.test_owner is None else int(task.test_owner[task.test_owner >= 0].bincount().count_nonzero())


def _samples(task: Task) -> str:
    rows, unused = len(task.inputs), len(task.inputs) - len(task.samples) if isinstance(task.samples, Tensor) else 0
    left = f"; {counted(unused, 'sample')} belong to no node" if unused else ""
    public = f", {count(len(task.public))} without labels for all" if len(task.public) else ""
    return f"{count(rows)} rows for training, {count(len(task.test_inputs))} for testing{public}; {_each(task)}{left}"


def _note(task: Task) -> str:
    return f"; {task.given.note}" if task.given and task.given.note else ""


def _each(task: Task) -> str:
    shape, given = tuple(task.inputs.shape[1:]), f" ({task.given.x})" if task.given else ""
    if task.tokens:
        return f"{counted(shape[0], 'token') if shape else 'a token'} each{given}"
    low, high = task.span
    words = counted(shape[0], "feature") if len(shape) == 1 else f"{' x '.join(map(str, shape))} numbers"
    return f"{words} each, from {low:.4g} to {high:.4g}{given}"


def _targets(task: Task) -> str:
    given = f" (y: {task.given.y})" if task.given else ""
    if isinstance(task.model, Rollout):
        world, best = task.model.environment, f"{task.targets.min():.4g} to {task.targets.max():.4g}"
        return f"episodes of up to {count(world.limit)} steps, {world.actions} actions; best returns {best}, by {part_name(task.loss)}"
    if not task.classes:
        outputs = counted(int(np.prod(task.targets.shape[1:])), "number")
        return f"regression of {outputs}, from {task.targets.min():.4g} to {task.targets.max():.4g}, by {part_name(task.loss)}{given}"
    if task.masks:
        sizes = torch.zeros(task.classes, dtype=torch.int64)
        for some in torch.split(task.targets, 1024):
            sizes += some[some >= 0].bincount(minlength=task.classes)
        none = f"; {short_percent(1 - float(sizes.sum()) / task.targets.numel())} of pixels have none" if (task.targets < 0).any() else ""
        return f"masks: {_classes(task, sizes, 'pixel')} at each of {count(task.places)} pixels{none}, by {part_name(task.loss)}{given}"
    if task.places > 1:
        return f"classification: one of {count(task.classes)} tokens at each of {task.places} places, by {part_name(task.loss)}{given}"
    return f"classification: {_classes(task, task.targets.bincount(minlength=task.classes))}, by {part_name(task.loss)}{given}"


def _classes(task: Task, sizes: Tensor, noun: str = "row") -> str:
    empty = int((sizes == 0).sum())
    none = f", {count(empty)} of them without a {noun}" if empty else ""
    if task.classes <= NAMED:
        each = ", ".join(f"{class_name(task, number)}: {count(rows)}" for number, rows in enumerate(sizes.tolist()))
        return f"{task.classes} class{'es' if task.classes > 1 else ''}{none} ({each})"
    return f"{count(task.classes)} classes{none}; {count(int(sizes.min()))} to {count(int(sizes.max()))} {noun}s each"


def _tests(task: Task) -> str:
    held = "a fifth, held out by lot; " if task.given and task.given.held_out else ""
    if task.test_owner is None:
        return f"{held}they belong to no node; a node's own accuracy is that of its mix of labels" if task.labelled else f"{held}of no node"
    sizes = task.test_owner[task.test_owner >= 0].bincount(minlength=task.nodes)
    least, most, nobody = int(sizes[sizes > 0].min()), int(sizes.max()), int((task.test_owner < 0).sum())
    span = count(most) if least == most else f"{count(least)} to {count(most)}"
    who = f"{count(test_nodes(task))} of {count(task.nodes)} nodes have {span} of their own"
    return f"{held}{who}" + (f"; {count(nobody)} are of no node" if nobody else "")
