"""The task: samples, who has them, the model and its loss. Tensors only; there is no Python object per node."""

import copy
import dataclasses
import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.data.shift import Bound
from fedsim.loss import Loss
from fedsim.rows import Layout


def decoded(inputs: Tensor) -> Tensor:
    """Samples as models take them: bytes (images are kept as such, in a quarter of the memory) as float32 from 0 to 1."""
    return inputs.to(torch.float32).div_(255) if inputs.dtype == torch.uint8 else inputs


# N: training samples, M: test samples, n: nodes, d: trainable parameters


@dataclass
class Task:
    """What is learnt, and how its data lie on the nodes.

    `samples` holds sample numbers sorted by node: node i has samples[starts[i] : starts[i + 1]]. Samples that no node has may be in
    `inputs`. `model` is a template whose trainable parameters, in the order of `layout`, form a row.
    """

    inputs: Tensor  # [N, ...] float32, or uint8: see `decoded`
    targets: Tensor  # [N] int64 classes, or [N] or [N, outputs] float32
    samples: Tensor  # int64 [samples in use]
    starts: Tensor  # int64 [n + 1]
    test_inputs: Tensor  # [M, ...]
    test_targets: Tensor  # [M] or [M, outputs]
    test_owner: Tensor | None  # int64 [M], -1 for nobody; None where test samples belong to no node
    model: nn.Module
    layout: Layout
    init: Tensor  # [d] the first model
    loss: Loss
    classes: int  # 0 for regression
    groups: dict[str, range] = dataclasses.field(default_factory=dict)
    shifts: tuple[Bound, ...] = ()  # how nodes' samples differ from those in `inputs`

    @property
    def nodes(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def counts(self) -> Tensor:
        """int64 [n]: samples of each node."""
        return self.starts.diff()

    @cached_property
    def share(self) -> Tensor:
        """[n], in the models' type: counts over their sum."""
        return (self.counts.double() / self.counts.sum()).to(self.init.dtype)

    def owners(self) -> Tensor:
        """int64 [samples in use]: the node of each entry of `samples`."""
        return torch.repeat_interleave(self.counts)

    def label_counts(self) -> Tensor:
        """int64 [n, classes]: how many samples of each class each node has."""
        if not self.classes:
            return self.counts.new_zeros(self.nodes, 0)
        cells = self.owners() * self.classes + self.targets[self.samples]
        return cells.bincount(minlength=self.nodes * self.classes).view(self.nodes, self.classes)

    def hash(self) -> str:
        """sha256, hex, of the data, their split and shifts; the first model is not in it."""
        digest = hashlib.sha256()
        for name in ("inputs", "targets", "samples", "starts", "test_inputs", "test_targets"):
            array = getattr(self, name).cpu().contiguous().numpy()
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(memoryview(array).cast("B") if array.size else b"")
        for one in self.shifts:
            digest.update(f"{one.shift} {int(one.key)}".encode())
        return digest.hexdigest()

    def move(self, device: torch.device | str) -> "Task":
        """The same task with all tensors, and the model, on a device."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in fields.items() if isinstance(value, Tensor)}
        moved["shifts"] = tuple(one.to(device) for one in self.shifts)
        return dataclasses.replace(self, **moved, model=copy.deepcopy(self.model).to(device))
