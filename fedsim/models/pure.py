"""Layers as functions of rows: those of torch that keep statistics, draw random numbers or don't stack, in a form that does neither.

BatchNorm counts only samples with a weight and hands its new statistics over instead of writing them; dropout is a function of a
key; recurrent layers are plain operations. What a layer needs for that stands in the one `Call` that all layers of a model share.
"""

# B: samples, L: places, C: channels, H: units

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from fedsim.base.keys import bits, fold
from fedsim.base.rows import Layout, Rows
from fedsim.models.norm import NarrowGroupNorm


class Call:
    """What the layers of a model know of the call at hand. `weight` [B] and the batch's `key` in training, None in evaluation.

    `share` is how much this batch counts for new running statistics, where that is not their layer's momentum.
    """

    def __init__(self) -> None:
        self.weight: Tensor | None = None
        self.key: Tensor | None = None
        self.share: float | None = None
        self.draws = 0
        self.statistics: Rows = {}

    @contextmanager
    def training(self, weight: Tensor, key: Tensor | None, share: float | None = None) -> Iterator[Rows]:
        """Layers train inside; what is given collects the new statistics by name."""
        self.weight, self.key, self.share, self.draws, self.statistics = weight, key, share, 0, {}
        try:
            yield self.statistics
        finally:
            self.weight, self.key, self.share, self.statistics = None, None, None, {}

    def kept(self, shape: torch.Size, p: float) -> Tensor:
        """Of this shape: 1 / (1 - p) where the batch's key keeps, 0 where it drops; each asking has its own numbers."""
        assert self.key is not None, "dropout needs the batch's key"
        self.draws += 1
        score = (bits(fold(self.key, "dropout", self.draws), prod(shape)) >> 40) + (1 << 23)  # 24 bits, uniform from 0
        return (score >= round(p * (1 << 24))).view(shape).to(torch.float32) / (1 - p)

    def counts(self, rows: int) -> Tensor | None:
        """float [rows]: 1 for those of samples with a weight, else 0; rows are samples, or several for each, sample by sample."""
        if self.weight is None:
            return None
        each, rest = divmod(rows, len(self.weight))
        if rest:
            raise ValueError(f"a BatchNorm layer is given {rows} rows for a batch of {len(self.weight)} samples")
        counted = (self.weight != 0).to(self.weight.dtype)
        return counted if each == 1 else counted.repeat_interleave(each)


class PureLayer(nn.Module):
    """A layer that knows its name in the model and the model's call."""

    call: Call
    place: str


class PureBatchNorm(PureLayer, nn.modules.batchnorm._BatchNorm):
    """Ioffe & Szegedy 2015; statistics are those of the samples with a weight, and new running ones go to the call.

    One value a channel tells nothing of its spread: running statistics stay as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        if mean is None or variance is None or (self.training and self.call.weight is not None):
            mean, variance = self._measured(x)
        shape = (1, -1, *[1] * (x.dim() - 2))
        out = (x - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        return out * self.weight.view(shape) + self.bias.view(shape) if self.affine else out

    def _measured(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance [C] of the samples that count."""
        axes, counted = (0, *range(2, x.dim())), self.call.counts(len(x))
        if counted is None:
            return x.mean(axes), x.var(axes, correction=0)
        shape, counted = (1, -1, *[1] * (x.dim() - 2)), counted.view(-1, *[1] * (x.dim() - 1))
        count = (counted.sum() * prod(x.shape[2:])).clamp(min=1)
        mean = (x * counted).sum(axes) / count
        variance = ((x - mean.view(shape)).square() * counted).sum(axes) / count
        if self.track_running_stats and self.running_mean is not None:
            self._keep(mean.detach(), (variance * count / (count - 1).clamp(min=1)).detach(), count)
        return mean, variance

    def _keep(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Hands over running statistics: old + momentum x (new - old), or their mean over all batches."""
        statistics = self.call.statistics
        names = [f"{self.place}{name}" for name in ("running_mean", "running_var", "num_batches_tracked")]
        assert isinstance(self.num_batches_tracked, Tensor)
        factor: float | Tensor
        if self.momentum is None:
            batches = statistics.get(names[2], self.num_batches_tracked) + (count > 1).to(mean.dtype)
            statistics[names[2]], factor = batches, 1 / batches.clamp(min=1)
        else:
            factor = self.momentum
        factor = factor if self.call.share is None else self.call.share
        for name, old, new in ((names[0], self.running_mean, mean), (names[1], self.running_var, variance)):
            before = statistics.get(name, old)
            assert before is not None
            statistics[name] = before + torch.where(count > 1, factor * (new - before), 0)


class PureDropout(PureLayer, nn.modules.dropout._DropoutNd):
    """Srivastava et al. 2014; what is left out follows from the batch's key. Dropout1d to 3d leave out whole channels."""

    channels: bool

    def forward(self, x: Tensor) -> Tensor:
        if self.call.weight is None or not self.training or not self.p:
            return x
        if self.p >= 1:
            return x * 0
        shape = torch.Size((*x.shape[:2], *[1] * (x.dim() - 2))) if self.channels else x.shape
        return x * self.call.kept(shape, self.p).to(x.dtype)


class PureRecurrent(PureLayer, nn.RNNBase):
    """LSTM, GRU and RNN with torch's parameters; dropout between the layers is keyed.

    One model alone runs torch's own kernel; rows of models run cell by cell in plain operations, which stack.
    """

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        if not isinstance(x, Tensor) or x.dim() != 3:
            raise ValueError(f"`{self.place[:-1]}` takes a batch of sequences as a tensor of three axes")
        weights: list[list[Tensor]] = [[getattr(self, name) for name in names] for names in self._all_weights]
        keyed = self.dropout > 0 and self.num_layers > 1 and self.training and self.call.weight is not None
        plain = not keyed and not any(map(is_functorch_wrapped_tensor, (x, *weights[0])))
        if (self.bidirectional or self.proj_size) and not plain:
            raise ValueError("recurrent layers of two directions, or with projections, neither stack nor have keyed dropout")
        if hx is None:
            sides = self.num_layers * (1 + self.bidirectional)
            sizes = (self.proj_size or self.hidden_size, self.hidden_size)[: 1 + (self.mode == "LSTM")]
            hx = tuple(x.new_zeros(sides, x.shape[0 if self.batch_first else 1], size) for size in sizes)
        states: tuple[Tensor, ...] = hx if isinstance(hx, tuple) else (hx,)
        out, *ends = self._kernel(x, states, weights) if plain else self._cells(x, states, weights, keyed)
        return out, tuple(ends) if self.mode == "LSTM" else ends[0]

    def _kernel(self, x: Tensor, states: tuple[Tensor, ...], weights: list[list[Tensor]]) -> tuple[Tensor, ...]:
        flat = [weight for layer in weights for weight in layer]
        kernel: Any = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}[self.mode]
        first, train = states if self.mode == "LSTM" else states[0], torch.is_grad_enabled()
        found: tuple[Tensor, ...] = kernel(x, first, flat, self.bias, self.num_layers, 0.0, train, self.bidirectional, self.batch_first)
        return found

    def _cells(self, x: Tensor, states: tuple[Tensor, ...], weights: list[list[Tensor]], keyed: bool) -> tuple[Tensor, ...]:
        x = x if self.batch_first else x.transpose(0, 1)
        ends: list[tuple[Tensor, ...]] = []
        for layer, part in enumerate(weights):
            if keyed and layer:
                x = x * self.call.kept(x.shape, self.dropout).to(x.dtype)
            x, last = self._layer(x, tuple(state[layer] for state in states), *part)
            ends.append(last)
        return x if self.batch_first else x.transpose(0, 1), *(torch.stack(part) for part in zip(*ends, strict=True))

    def _layer(
        self,
        x: Tensor,
        state: tuple[Tensor, ...],
        into: Tensor,
        back: Tensor,
        bias_in: Tensor | None = None,
        bias_back: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Outputs [B, L, H] and the last state of one layer."""
        outputs = []
        for given in nn.functional.linear(x, into, bias_in).unbind(1):  # what comes from x, for all places at once
            state = self._cell(given, nn.functional.linear(state[0], back, bias_back), state)
            outputs.append(state[0])
        return torch.stack(outputs, 1), state

    def _cell(self, given: Tensor, back: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.mode == "LSTM":
            enter, forget, new, out = (given + back).chunk(4, -1)
            cell = forget.sigmoid() * state[1] + enter.sigmoid() * new.tanh()
            return out.sigmoid() * cell.tanh(), cell
        if self.mode == "GRU":
            (reset, update, new), (reset_back, update_back, new_back) = given.chunk(3, -1), back.chunk(3, -1)
            keep = (update + update_back).sigmoid()
            fresh = (new + (reset + reset_back).sigmoid() * new_back).tanh()
            return (fresh + keep * (state[0] - fresh),)
        both = given + back
        return (both.tanh() if self.mode == "RNN_TANH" else both.relu(),)


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def _pure_kind(part: nn.Module) -> type[PureLayer] | None:
    """The pure form of a layer; None for one that needs none or has none. A subclass may do something else, so it has none."""
    if type(part) in NORMS:
        return PureBatchNorm
    if type(part) in (nn.Dropout, *CHANNELS):
        return PureDropout
    return PureRecurrent if type(part) in (nn.LSTM, nn.GRU, nn.RNN) else None


def pure(module: nn.Module) -> nn.Module:
    """The same module, its layers turned into their pure forms where there are such: names, parameters and ties stay."""
    call = Call()
    for name, part in module.named_modules():
        if type(part) is nn.GroupNorm:
            part.__class__ = NarrowGroupNorm
        kind = _pure_kind(part)
        if kind is not None:
            vars(part).update(call=call, place=f"{name}." if name else "", channels=type(part) in CHANNELS)
            part.__class__ = kind
    return module


def call_of(module: nn.Module) -> Call | None:
    """The call that the module's layers share, None where no layer asks for one."""
    return next((part.call for part in module.modules() if isinstance(part, PureLayer)), None)


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode, for layers of a user's own; afterwards each part is as it was."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


@contextmanager
def measuring(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode, but for the running statistics that training renews."""
    norms = [part for part in module.modules() if isinstance(part, PureBatchNorm) and part.training]
    with evaluation(module):
        for part in norms:
            part.training = True
        yield


def draws(module: nn.Module) -> bool:
    """Does training need a key?"""
    parts = list(module.modules())
    dropout = any(isinstance(part, PureDropout) and part.p and part.training for part in parts)
    return dropout or any(isinstance(part, PureRecurrent) and part.dropout and part.num_layers > 1 for part in parts)


def statistics(module: nn.Module) -> tuple[Layout, Tensor]:
    """Layout of the running statistics that training renews, and what they begin as, [b]."""
    found: Rows = {}
    for part in module.modules():
        if isinstance(part, PureBatchNorm) and part.training and part.track_running_stats:
            for name, buffer in part.named_buffers():
                if name != "num_batches_tracked" or part.momentum is None:
                    found[f"{part.place}{name}"] = buffer.detach() if buffer.is_floating_point() else buffer.detach().float()
    layout = Layout({name: buffer.shape for name, buffer in found.items()})
    return layout, layout.join(found) if found else torch.zeros(0)
