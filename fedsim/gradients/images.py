"""How images lie in memory: channels last, as a CPU's convolutions are fastest, wherever its kernels for that are known to be whole."""

import os
from itertools import chain

import torch
from torch import nn

LANES = 8  # float32 numbers that AVX2 takes at once


def channels_last(model: nn.Module, device: torch.device) -> bool:
    """May images and kernels of the model lie channels last?

    With AVX2 alone, oneDNN (3.12, in PyTorch 2.13) writes past the end of its memory in the backward pass of 1x1 convolutions with
    stride and 2 to 7 input channels that lie so. The stride is nowhere in the kernel, so those without one lie channels first as well.
    """
    if device.type != "cpu" or _wide():
        return True
    return not any(
        kernel.dim() == 4 and kernel.shape[2:] == (1, 1) and 1 < kernel.shape[1] < LANES
        for kernel in chain(model.parameters(), model.buffers())
    )


def _wide() -> bool:
    """Has the CPU AVX-512, and may oneDNN use it?"""
    limited = any(name in os.environ for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"))
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and not limited
