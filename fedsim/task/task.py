"""The task: samples, who has them, the model and its loss. Tensors only; there is no Python object per node."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim.base.devices import counted, sent
from fedsim.base.keys import below, fold
from fedsim.base.rows import Layout
from fedsim.data.augment import Augment
from fedsim.data.given import Given
from fedsim.data.shift import Bound, Gathered, shifted
from fedsim.models.pure import draws
from fedsim.task.architectures import Architecture, filled, on
from fedsim.task.loss import Loss

SOME = 10_000  # nodes whose labels are counted where there are more


def decoded(inputs: Tensor) -> Tensor:
    """Samples as models take them: bytes (images are kept as such, in a quarter of the memory) as float32 from 0 to 1, tokens as int64."""
    if inputs.dtype == torch.uint8:
        return inputs.to(torch.float32).div_(255)
    return inputs.to(torch.int64) if inputs.dtype in (torch.int16, torch.int32) else inputs


def picked(inputs: Tensor, at: Tensor) -> Tensor:
    """[..., *shape]: samples with numbers `at`, int64 [...], of inputs [N, *shape], as models take them.

    By `index_select`, which copies whole samples: of images a tenth of the time that an index takes.
    """
    found = decoded(inputs.index_select(0, at.flatten()))
    return found.view(*at.shape, *found.shape[1:])


# N: training samples, M: test samples, n: nodes, d: trainable parameters, b: running statistics


@dataclass(frozen=True)
class Drawn:
    """Samples that nodes draw by key from the `size` samples of all, with replacement: nowhere written down, at no cost."""

    key: Tensor  # int64
    size: int

    def at(self, nodes: Tensor, places: Tensor) -> Tensor:
        """int64: the sample numbers at these places of nodes."""
        return below(fold(self.key, nodes, places), 1, self.size)[..., 0]


@dataclass
class Task:
    """What is learnt, and how its data lie on the nodes.

    Node i has starts[i + 1] - starts[i] samples. `samples` holds sample numbers sorted by node: node i has samples[starts[i] :
    starts[i + 1]]; or nodes draw theirs by key. Samples that no node has may be in `inputs`. `model` is a template whose trainable
    parameters, in the order of `layout`, form a row.

    Running statistics (BatchNorm's) form a row of b numbers of their own, which strategies never see: hearers average what comes back
    (`average`), or each node keeps its own from job to job and the hearers' average is only evaluated (`local`).

    Where nodes have different models, rows of them lie side by side as long as the longest (`width`), filled up with zeros, and a server
    is a hearer for each architecture: see `stacks`, `firsts`, `home`.
    """

    inputs: Tensor  # [N, ...] float32 or int64, or uint8, int16, int32: see `decoded`
    targets: Tensor  # [N] int64 classes, [N, L] int64 next tokens or pixels' classes (-1: none), or [N] or [N, outputs] float32
    samples: Tensor | Drawn  # int64 [samples in use]
    starts: Tensor  # int64 [n + 1]
    test_inputs: Tensor  # [M, ...]
    test_targets: Tensor  # [M, ...] as targets
    test_owner: Tensor | None  # int64 [M], -1 for nobody; None where test samples belong to no node
    model: nn.Module
    layout: Layout
    init: Tensor  # [d] the first model
    loss: Loss
    classes: int  # 0 for regression; of next tokens the vocabulary
    groups: dict[str, range] = dataclasses.field(default_factory=dict)
    each: Tensor | None = None  # [n, d]: the peers' first models, where each has its own
    buffers: Layout = dataclasses.field(default_factory=lambda: Layout({}))
    first_buffers: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0))  # [b]
    keep_buffers: Literal["average", "local"] = "average"
    shifts: tuple[Bound, ...] = ()  # how nodes' samples differ from those in `inputs`
    importance: Tensor | None = None  # float64 [n]: how much nodes count where that is not by samples
    poison: tuple[Bound, ...] = ()  # what attackers make of those that they train on
    augment: tuple[Augment, ...] = ()  # what training makes of samples, anew each time that it uses them
    public: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0))  # [P, ...] as inputs: samples that all have, no labels
    architectures: tuple[Architecture, ...] = ()  # where nodes have different models: all of them, and `model` is the first
    architecture: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))  # [n], or [0]: which one
    given: Given | None = None  # what the source gave, for people
    elsewhere: bool = False  # nodes' samples are not here: other ones stand for them, and say nothing of them but their number
    apart: bool = False  # test samples lie with the nodes: those here stand for them, and nothing is measured on them
    known: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)  # what was worked out once, for all runs over the task

    @property
    def nodes(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def counts(self) -> Tensor:
        """int64 [n]: samples of each node."""
        return self.starts.diff()

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """The same on the host."""
        return self.counts.cpu().numpy()

    @cached_property
    def stacks(self) -> tuple["Task", ...]:
        """The task as nodes of each architecture know it, whose rows have one length; this one where there are no several."""
        if not self.architectures:
            return (self,)
        own = ("model", "layout", "init", "known")
        each = ({name: getattr(one, name) for name in own} for one in self.architectures)
        return tuple(dataclasses.replace(self, **one, architectures=(), architecture=self.architecture[:0]) for one in each)

    @cached_property
    def width(self) -> int:
        """Numbers of the longest row."""
        return max(one.layout.size for one in self.stacks)

    @cached_property
    def home(self) -> NDArray[np.int64]:
        """int64 [n]: the architecture of each node, on the host."""
        return self.architecture.cpu().numpy() if self.architectures else np.zeros(self.nodes, dtype=np.int64)

    @cached_property
    def firsts(self) -> Tensor:
        """[h, width]: the first model of each architecture."""
        return torch.cat([filled({"x": one.init[None]}, one.layout.size, self.width)["x"] for one in self.stacks])

    def first_of(self, nodes: NDArray[np.int64]) -> Tensor:
        """[k, width]: the first models of nodes [k], to be read only."""
        if not self.architectures:
            return self.init.expand(len(nodes), -1)
        return self.firsts[sent(self.home[nodes], self.init.device)]

    @cached_property
    def relabels(self) -> bool:
        """Do nodes' samples differ from those in `inputs` by what they are called, and by nothing else?"""
        changes = self.shifts + self.poison
        return bool(changes) and all(one.shift.relabels() for one in changes)

    @cached_property
    def keyed(self) -> bool:
        """Does training draw random numbers, as dropout does?"""
        return draws(self.model)

    @cached_property
    def share(self) -> Tensor:
        """[n], in the models' type: of all samples, or of the weights that are given."""
        return self.part.to(self.init.dtype)

    @cached_property
    def part(self) -> Tensor:
        """The same in float64."""
        weight = self.counts.double() if self.importance is None else self.importance
        return weight / weight.sum()

    @cached_property
    def most(self) -> int:
        """Samples of the node that has most."""
        return int(self.sizes.max())

    @property
    def sends_buffers(self) -> bool:
        """Do running statistics travel with the models?"""
        return self.buffers.size > 0 and self.keep_buffers == "average"

    @property
    def places(self) -> int:
        """Targets of a sample: the length of sequences that have a class at each place, the pixels of a mask, else 1."""
        return self.targets.shape[1] if self.classes and self.targets.dim() > 1 else 1

    def first(self, hearers: int) -> Tensor:
        """[h, d]: the hearers' first models, to be written to."""
        if self.architectures:
            return self.firsts.clone()
        return (self.init.expand(hearers, -1) if self.each is None else self.each[:hearers]).clone()

    @property
    def masks(self) -> bool:
        """Has each sample a class at each pixel?"""
        return self.places > 1 and not self.tokens

    @property
    def tokens(self) -> bool:
        """Are samples token numbers, not quantities?"""
        return not (self.inputs.is_floating_point() or self.inputs.dtype == torch.uint8)

    @cached_property
    def span(self) -> tuple[float, float]:
        """Least and greatest number of the training samples, as models take them."""
        low, high = decoded(torch.stack(self.inputs.aminmax())).tolist()
        return low, high

    @property
    def labelled(self) -> bool:
        """Has each sample one class?"""
        return self.classes > 0 and self.targets.dim() == 1

    def sample(self, nodes: Tensor, places: Tensor) -> Tensor:
        """int64: the sample numbers at these places (from 0) of nodes; both broadcast."""
        return self.samples.at(nodes, places) if isinstance(self.samples, Drawn) else self.samples[self.starts[nodes] + places]

    def seen(self, nodes: Tensor, places: Tensor, round: int) -> Gathered:
        """The training samples at places [m, B] of nodes [m], as these train on them in a round."""
        number = self.sample(nodes[:, None], places)
        given = Gathered(picked(self.inputs, number), self.targets[number], number, nodes, torch.full_like(nodes, round))
        return shifted(self.shifts + self.poison, given)

    def some(self, ids: range | None = None) -> Tensor:
        """int64 [k], rising: these nodes (None: all). Of more than SOME, one by lot out of each of SOME equal blocks of ids."""
        ids = range(self.nodes) if ids is None else ids
        if len(ids) <= SOME:
            return torch.arange(ids.start, ids.stop, device=self.starts.device)
        edges = ids.start + torch.arange(SOME + 1) * len(ids) // SOME
        return (edges[:-1] + below(fold(0, "some", edges[:-1]), 1, edges.diff())[:, 0]).to(self.starts.device)

    def label_counts(self, ids: range | None = None) -> Tensor:
        """int64 [k, classes]: how many samples of each class the nodes `some(ids)` have; [k, 0] where they have none or not here."""
        if not self.labelled or self.elsewhere:
            return self.counts.new_zeros(len(self.some(ids)), 0)
        return self.mixes(self.some(ids))

    def mixes(self, nodes: Tensor) -> Tensor:
        """`labels` of nodes int64 [k], counted once: evaluations ask again for the same ones, or for some of `some()`."""
        place = torch.searchsorted(self._some, nodes).clamp(max=len(self._some) - 1)
        if bool((self._some[place] == nodes).all()):
            return self._mixes[place]
        key = nodes.cpu().numpy().tobytes()  # a group's, of more than SOME nodes
        if key not in self._others:
            self._others[key] = self.labels(nodes)
        return self._others[key]

    @cached_property
    def _some(self) -> Tensor:
        return self.some()

    @cached_property
    def _mixes(self) -> Tensor:
        return self.labels(self._some)

    @cached_property
    def _others(self) -> dict[bytes, Tensor]:
        return {}

    def labels(self, nodes: Tensor, total: int | None = None) -> Tensor:
        """int64 [k, classes]: how many samples of each class nodes [k] have, `total` together if that is known."""
        if len(nodes) > 1000:
            return torch.cat([self.labels(part) for part in torch.split(nodes, 1000)])
        counts = self.counts[nodes]
        owner = torch.repeat_interleave(counts, output_size=total)
        place = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
        labels = self.targets[self.sample(nodes[owner], place)]
        return counted(owner * self.classes + labels, len(nodes) * self.classes).view(len(nodes), self.classes)

    def hash(self) -> str:
        """sha256, hex, of the data, their split and shifts; the first model is not in it."""
        values = [(name, getattr(self, name)) for name in ("inputs", "targets", "samples", "starts", "test_inputs", "test_targets")]
        values += [("public", self.public)] if len(self.public) else []
        tensors = [(name, value.key if isinstance(value, Drawn) else value) for name, value in values]
        stamp = [(id(tensor), tensor._version) for _, tensor in tensors]
        if self.known.get("hash", [None])[0] != stamp:
            self.known["hash"] = stamp, _digest(tensors), tensors  # which are held, so that no others get their ids
        digest = self.known["hash"][1].copy()
        for one in self.shifts:
            digest.update(f"{one.shift} {int(one.key)}".encode())
        return str(digest.hexdigest())

    def move(self, device: torch.device | str) -> "Task":
        """The same task with all tensors, and the model, on a device."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in fields.items() if isinstance(value, Tensor)}
        moved |= {name: tuple(one.to(device) for one in fields[name]) for name in ("shifts", "poison")}
        others = tuple(dataclasses.replace(one, model=on(device, one.model), init=one.init.to(device)) for one in self.architectures)
        return dataclasses.replace(self, **moved, model=on(device, self.model), architectures=others)


def _digest(tensors: Sequence[tuple[str, Tensor]]) -> Any:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        array: Any = tensor.cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(memoryview(array).cast("B") if array.size else b"")
    return digest
