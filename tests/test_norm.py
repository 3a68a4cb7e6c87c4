"""GroupNorm of few channels a group, channels last: torch's numbers, slopes, and slopes of slopes."""

import torch
from torch import nn

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
