"""GroupNorm of few channels a group where images lie channels last: torch's own kernel for that takes five times as long as need be."""

# B: samples, P: pixels, C: channels, G: groups, c: channels of a group

from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

LANES = 8  # float32 numbers that AVX2 takes at once; torch's kernel is fast from so many channels a group on


class NarrowGroupNorm(nn.GroupNorm):
    """Wu & He 2018, the same as torch's up to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.affine and self.num_channels < LANES * self.num_groups and x.dtype == self.weight.dtype
        if not (narrow and x.dim() == 4 and x.device.type == "cpu" and not is_functorch_wrapped_tensor(x)):
            return super().forward(x)
        if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        found: Tensor = _Grouped.apply(x, self.weight, self.bias, self.num_groups, self.eps)  # type: ignore[no-untyped-call]
        return found


class _Grouped(torch.autograd.Function):
    """Sums over pixels first, all channels side by side, then over the channels of a group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        y, scale = _pixels(x), weight.view(groups, -1)
        count = y.shape[1] * scale.shape[1]

        def mean(sums: Tensor) -> Tensor:
            """[B, G, 1] of [B, C]."""
            return sums.view(len(y), *scale.shape).sum(2, keepdim=True) / count

        centred = y - _row(mean(y.sum(1)).expand(-1, *scale.shape))
        ctx.rate = (mean((centred * centred).sum(1)) + eps).rsqrt()
        ctx.save_for_backward(x, weight, bias)
        ctx.centred, ctx.mean, ctx.eps = centred, mean, eps
        return _image(torch.addcmul(bias, centred, _row(ctx.rate * scale)), x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():  # slopes of slopes are wanted
            out = nn.functional.group_norm(x, ctx.rate.shape[1], weight, bias, ctx.eps)
            return *torch.autograd.grad(out, (x, weight, bias), slope, create_graph=True), None, None
        g, rate, scale = _pixels(slope.contiguous(memory_format=torch.channels_last)), ctx.rate, weight.view(ctx.rate.shape[1], -1)
        sums = g.sum(1).view(len(g), *scale.shape)
        products = (g * ctx.centred).sum(1).view(len(g), *scale.shape) * rate
        along = -rate * rate * ctx.mean(products * scale)
        same = -rate * ctx.mean(sums * scale)
        dx = torch.addcmul(_row(same.expand(-1, *scale.shape)), g, _row(rate * scale))
        dx.addcmul_(ctx.centred, _row(along.expand(-1, *scale.shape)))
        return _image(dx, x), products.sum(0).view(-1), sums.sum(0).view(-1), None, None


def _pixels(x: Tensor) -> Tensor:
    """[B, P, C] of images [B, C, ...] that lie channels last."""
    return x.permute(0, 2, 3, 1).view(len(x), -1, x.shape[1])


def _row(values: Tensor) -> Tensor:
    """[B, 1, C] of [B, G, c]."""
    return values.reshape(len(values), 1, -1)


def _image(pixels: Tensor, like: Tensor) -> Tensor:
    """[B, C, ...] of [B, P, C]."""
    batch, channels, height, width = like.shape
    return pixels.view(batch, height, width, channels).permute(0, 3, 1, 2)
