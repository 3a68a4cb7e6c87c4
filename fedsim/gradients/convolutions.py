"""Convolutions of many models at once: one grouped convolution, as torch stacks them, or patches of the images times kernels."""

# L: models, B: samples, C: channels, H, W: sides, O: output channels, h, w: sides of a kernel, P: places of an output

from functools import partial
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode

from fedsim.base.devices import sent
from fedsim.base.rows import Layout, Rows

POOLS = (nn.functional.max_pool2d, nn.functional.avg_pool2d)
PLACES = 16  # up to so many a product takes 0.3 to 0.8 of a grouped convolution's time, from 49 on 1.3 to 2.7 (AVX2, batch 10, 8 models)

Pair = tuple[int, int]


class Aside(TorchFunctionMode):
    """While it lasts, images of many models lie as a grouped convolution takes and gives them, [B, L C, H, W], also where they are pooled.

    Nothing is turned between, and a bias is the convolution's own: fewer launches of a GPU.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        images = bool(args) and isinstance(args[0], Tensor) and args[0].dim() == 4 and is_functorch_wrapped_tensor(args[0])
        if images and func in POOLS:
            return _Aside.apply(partial(func, **named), *args)  # type: ignore[no-untyped-call]
        if images and func is torch.conv2d and len(args) == 7 and args[6] == 1:
            return _Aside.apply(torch.conv2d, *args[:6])  # type: ignore[no-untyped-call]
        return func(*args, **named)


class _Aside(torch.autograd.Function):
    """`work` on images of rows of models, and on kernels and bias where it is a convolution."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        raise NotImplementedError("is for rows of models")

    setup_context = backward = forward  # type: ignore[assignment]

    @staticmethod
    def vmap(info: Any, in_dims: Any, work: Any, x: Tensor, *more: Any) -> tuple[Tensor, int]:
        rows = info.batch_size

        def beside(one: Any, at: int | None, axis: int) -> Any:
            """All models' at this axis."""
            if not isinstance(one, Tensor):
                return one
            each = one.unsqueeze(axis).expand(*one.shape[:axis], rows, *one.shape[axis:]) if at is None else one.movedim(at, axis)
            return each.flatten(axis, axis + 1)

        others = [beside(one, at, 0) for one, at in zip(more, in_dims[2:], strict=True)]
        found = work(beside(x, in_dims[1], 1), *others, *([rows] if work is torch.conv2d else []))
        return found.unflatten(1, (rows, -1)), 1


class Convolutions(TorchFunctionMode):
    """While it lasts, convolutions of images with at most so many `places` of output are products of patches and kernels.

    Those with groups of their own, or padded by a word, stay as they are.
    """

    def __init__(self, places: float = PLACES) -> None:
        super().__init__()
        self.places = places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d and (found := self._product(*args, **(kwargs or {}))) is not None:
            return found
        return func(*args, **(kwargs or {}))

    def _product(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor | None:
        """The convolution of these, None where it is to be one."""
        if groups > 1 or isinstance(padding, str) or input.dim() != 4:
            return None
        steps, pads, apart = _pair(stride), _pair(padding), _pair(dilation)
        sizes = zip(input.shape[2:], pads, apart, weight.shape[2:], steps, strict=True)
        height, width = ((side + 2 * pad - far * (size - 1) - 1) // step + 1 for side, pad, far, size, step in sizes)
        if height * width > self.places:
            return None
        patches = nn.functional.unfold(input, weight.shape[2:], apart, pads, steps)  # [B, C h w, P]
        out = nn.functional.linear(patches.transpose(1, 2).flatten(0, 1), weight.flatten(1), bias)  # [B P, O]
        if height * width == 1:  # so that it lies channels first for who looks at its strides: vmapped norms refuse what may lie otherwise
            return out[:, :, None, None]
        return out.view(len(input), height, width, len(weight)).permute(0, 3, 1, 2).contiguous()


class Gathered:
    """Kernels and biases of a model's convolutions out of rows: each of all models side by side, as a grouped convolution takes it.

    One launch of a GPU, where a copy of each would be one: numbers come in runs, as long as divide all of them, by where they begin.
    """

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        layers = ((name, part) for name, part in model.named_modules() if isinstance(part, nn.modules.conv._ConvNd))
        names = (f"{name}.{each}".removeprefix(".") for name, part in layers for each, _ in part.named_parameters(recurse=False))
        self.layout, self.names = layout, [name for name in names if name in layout.slices]
        self.run = gcd(*(layout.shapes[name].numel() for name in self.names))
        self.begins: dict[int, Tensor] = {}  # int64, of the runs in so many rows

    def __call__(self, rows: Tensor) -> Rows:
        """[L, *shape] by name, from rows [L, d]."""
        if not self.names:
            return {}
        count, shapes = len(rows), [self.layout.shapes[name] for name in self.names]
        if count not in self.begins:
            self.begins[count] = sent(self._begins(count), rows.device)
        found = rows.reshape(-1).unfold(0, self.run, 1).index_select(0, self.begins[count]).view(-1)
        each = torch.split(found, [count * shape.numel() for shape in shapes])
        return {name: one.view(count, *shape) for name, one, shape in zip(self.names, each, shapes, strict=True)}

    def _begins(self, count: int) -> Tensor:
        rows = self.layout.size * torch.arange(count)[:, None]
        slices = (self.layout.slices[name] for name in self.names)
        return torch.cat([(rows + torch.arange(one.start, one.stop, self.run)).flatten() for one in slices])


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
