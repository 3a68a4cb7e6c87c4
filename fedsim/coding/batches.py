"""What workers compute in a job: their sums as weighted samples of a batch that all know, and their gradients."""

# n: workers, q: coded sums that a worker has of a job, B: samples of a sum, m: messages, d: parameters

from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.errors import SettingError
from fedsim.base.keys import below, fold
from fedsim.coding.scheme import Scheme
from fedsim.method.local import Local
from fedsim.task.task import Task


class Table(NamedTuple):
    """Of each worker's sums [n, q]: places in the batch [n, q, B], their weights [n, q, B] (0: padding), and how many there are [n, q]."""

    places: Tensor
    weight: Tensor
    samples: Ints


@lru_cache(maxsize=8)
def table(scheme: Scheme, workers: int, batch: int) -> Table:
    """A chunk is a run of places in the batch. Weights other than 0 and 1 are in float64, in which random codes need their gradients."""
    sums = scheme.sums(workers)
    ends = np.rint(np.cumsum(scheme.sizes(workers)) * batch)
    coefficients = sums[:, :, np.searchsorted(ends, np.arange(batch), side="right")]
    count = (coefficients != 0).sum(2)
    places = np.argsort(coefficients == 0, axis=2, kind="stable")[:, :, : max(1, int(count.max()))]
    weight = torch.from_numpy(np.take_along_axis(coefficients, places, 2) / batch)
    return Table(torch.from_numpy(places), weight.float() if np.isin(sums, (0, 1)).all() else weight, count)


def size(task: Task, batch: int | Literal["all"]) -> int:
    """Samples of a job: no more than there are."""
    total = int(task.sizes.sum())
    return total if batch == "all" else min(batch, total)


def checked(scheme: Scheme, task: Task, batch: int | Literal["all"]) -> Table:
    """The table for a task. Raises SettingError where workers would not agree about a sample's gradient, or the scheme does not fit."""
    if task.keyed or task.buffers.size or task.shifts or task.poison:
        raise SettingError("task", "gradients of one sample differ between workers: dropout, running statistics, shifts or poison")
    try:
        return table(scheme, task.nodes, size(task, batch))
    except ValueError as error:
        raise SettingError("strategy.scheme", str(error)) from error


def numbers(task: Task, batch: int, job: Tensor, places: Tensor) -> Tensor:
    """int64: which samples stand at places of jobs' batches (both broadcast): a keyed one of each of `batch` equal blocks of the data.

    The places in the blocks are the same in all runs (a round's shared key would change within a job); which samples lie there, the
    run's partition has drawn.
    """
    total = int(task.sizes.sum())
    first, after = places * total // batch, (places + 1) * total // batch
    at = first + below(fold(0, "coded batch", job, places), 1, after - first)[..., 0]
    node = torch.searchsorted(task.starts, at, right=True) - 1
    return task.sample(node, at - task.starts[node])


def exact(local: Local, samples: Tensor, weight: Tensor, x: Tensor, slot: int) -> Tensor:
    """[m, d]: gradient at x [m, d] of the weighted samples [m, B], in float64 where the weights are."""
    batch = local.given(samples, weight, slot)
    if weight.dtype == torch.float64:
        inputs, targets = (one.double() if one.is_floating_point() else one for one in (batch.inputs, batch.targets))
        return batch.with_(inputs=inputs, targets=targets).gradient(x.double())
    return batch.gradient(x)
