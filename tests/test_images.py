"""Channels last only where a CPU's kernels are whole: narrow 1x1 convolutions with stride, tried in a process that may die of them."""

import os
import subprocess
import sys

import pytest
import torch
from test_plans import arguments, plain, task_of
from torch import nn

from fedsim.gradients.images import channels_last
from fedsim.gradients.looped import Looped
from fedsim.models import Model, Shape
from strategies.fedavg import FedAvg

CPU = torch.device("cpu")
# glibc's checking allocator: a block whose end was written past ends the process when it is freed.
CHECKED = {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3", "OMP_NUM_THREADS": "1"}


class Narrow(Model):
    """A 1x1 convolution of the samples' channels with stride, and a dense layer."""

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        channels, height, width = input_shape
        return nn.Sequential(nn.Conv2d(channels, 4, 1, 2), nn.Flatten(), nn.Linear(height * width, outputs))


def try_all() -> None:
    """Slopes of weights and of inputs on this CPU, each width often enough to be noticed, beside those without oneDNN."""
    for channels in (1, 2, 3, 4, 6, 7, 8, 12):
        task = task_of(Narrow(), (channels, 8, 8))
        looped = Looped(task, FedAvg().loss, 4)
        x, samples = arguments(task, rows=2, batch=10)
        with torch.backends.mkldnn.flags(enabled=False):
            wanted = torch.stack([plain(task, x, samples, i) for i in range(2)])
        for _ in range(5):
            torch.testing.assert_close(looped.gradient(x, samples), wanted, rtol=1e-4, atol=1e-6)
            looped.input_gradient(x, samples)
    print("whole")


def test_gradients_are_whole_and_right_on_this_cpu() -> None:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False, env=os.environ | CHECKED)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr


@pytest.mark.parametrize(
    ("capability", "channels", "kernel", "expected"),
    [
        ("AVX2", 1, 1, True),
        ("AVX2", 2, 1, False),
        ("AVX2", 7, 1, False),
        ("AVX2", 8, 1, True),  # as many as AVX2 takes at once
        ("AVX2", 3, 3, True),
        ("DEFAULT", 2, 1, False),  # never tried
        ("AVX512", 2, 1, True),
    ],
)
def test_narrow_kernels_of_one_pixel_need_avx512(
    capability: str, channels: int, kernel: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert channels_last(nn.Conv2d(channels, 4, kernel, 2), CPU) == expected
    assert channels_last(nn.Conv2d(channels, 4, kernel, 2), torch.device("cuda"))


def test_a_limit_on_onednn_counts_as_a_cpu_that_has_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not channels_last(nn.Conv2d(2, 4, 1, 2), CPU)


if __name__ == "__main__":
    try_all()
