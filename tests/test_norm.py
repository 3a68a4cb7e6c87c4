"""GroupNorm of few channels a group, channels last: torch's numbers, slopes, and slopes of slopes."""

import torch
from torch import Tensor, nn
from torch.func import vmap

from fedsim.gradients.convolutions import Convolutions
from fedsim.models.norm import NarrowGroupNorm, _Grouped
from fedsim.models.pure import pure


def test_slopes_and_their_slopes_are_those_of_differences() -> None:
    x = torch.randn(2, 4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    weight, bias = (torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in ([1.0, -2, 0.5, 3], [0.0, 1, 2, 3]))
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda *args: _Grouped.apply(*args, 2, 1e-5), (x, weight, bias))


def test_a_group_far_from_zero_keeps_its_spread() -> None:
    norm = pure(nn.GroupNorm(1, 2))
    assert type(norm) is NarrowGroupNorm
    x = torch.tensor([[[[4095.0, 4097.0]], [[4095.0, 4097.0]]]]).expand(1, 2, 3, 2).to(memory_format=torch.channels_last)
    with torch.no_grad():
        out = norm(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, x - 4096, rtol=0, atol=1e-5)  # the variance is 1


def test_many_models_norms_follow_convolutions_to_one_place() -> None:
    """A product of patches and kernels must lie channels first: torch's vmapped norm refuses what may lie channels last."""
    images, kernels, scale = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 8, 4, 2, 2), torch.ones(2, 8)

    def one(x: Tensor, w: Tensor, s: Tensor) -> Tensor:
        return nn.functional.group_norm(torch.conv2d(x, w), 2, s, s)

    with Convolutions():
        found = vmap(one)(images, kernels, scale)
    assert torch.allclose(found, torch.stack([one(*each) for each in zip(images, kernels, scale, strict=True)]), atol=1e-5)
    with Convolutions():
        assert torch.conv2d(images[0], kernels[0]).stride()[1:] == (1, 1, 1)
