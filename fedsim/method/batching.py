"""Which of its samples each step of each job sees: arrays over jobs, on the host, whatever device computes."""

# m: jobs, R: rows of a table (one a step and job at work), B: samples a batch

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.base.clock import Ints
from fedsim.base.keys import fold_array, scramble

GROUP_BITS = 19  # of a sort key are the number of the shuffle, the rest is score and place
MOST_SHUFFLES = (1 << GROUP_BITS) - 1
MANY, SPARSE = 1 << 14, 32  # of so many samples, and so many times a batch, one batch is drawn number by number
MOST_POSITIVE = (1 << 63) - 1


class Work(NamedTuple):
    """What jobs have to do, int64 [m] each: key, samples of the node, steps (falling) and steps an epoch."""

    key: Ints
    samples: Ints
    steps: Ints
    per_epoch: Ints


def places(work: Work, size: int, first: int, last: int, shuffle: bool) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Of steps first to last: job [R], places of its samples [R, B] (from 0), and which of them count [R, B]; step by step.

    A job that is done has no row. Each epoch has its own order, a function of key and epoch.
    """
    keys, counts, steps, per_epoch = work
    span = np.arange(first, last)
    live = np.searchsorted(-steps, -span, side="left")
    step = np.repeat(span, live)
    job = np.arange(len(step)) - np.repeat(np.cumsum(live) - live, live)
    a_pass, count = per_epoch[job], counts[job][:, None]
    place = (step % a_pass * size)[:, None] + np.arange(size)
    valid = place < count
    np.minimum(place, count - 1, out=place)
    if shuffle:
        begin = first // per_epoch
        order, offset = _orders(keys, counts, begin, np.where(steps > first, (np.minimum(steps, last) - 1) // per_epoch - begin + 1, 0))
        place = order[(offset[job] + (step // a_pass - begin[job]) * counts[job])[:, None] + place]
    return job, place, valid


def padded(work: Work, size: int, first: int, last: int, shuffle: bool, rows: int) -> tuple[Ints, NDArray[np.float64]]:
    """The same as whole tables, [steps, rows, B]: places, and weights of sum 1 a batch, 0 for jobs that are done or are none."""
    job, place, valid = places(work, size, first, last, shuffle)
    step = np.cumsum(job == 0) - 1
    where, weight = np.zeros((last - first, rows, size), dtype=np.int64), np.zeros((last - first, rows, size))
    where[step, job], weight[step, job] = place, valid / valid.sum(1, keepdims=True)
    return where, weight


def first_batch(work: Work, size: int, shuffle: bool) -> tuple[Ints, NDArray[np.bool_]]:
    """Places of the samples of each job's first batch [m, B], none twice, and which of them count: as `places` has them.

    Of very many samples nobody orders all for one batch: those that come first among keyed numbers are drawn.
    """
    place, valid = np.empty((len(work.key), size), dtype=np.int64), np.ones((len(work.key), size), dtype=bool)
    many = (work.samples >= max(MANY, SPARSE * size)) & shuffle
    if not many.all():
        _, place[~many], valid[~many] = places(Work(*(column[~many] for column in work)), size, 0, 1, shuffle)
    if many.any():
        place[many] = _distinct(work.key[many], work.samples[many], size)
    return place, valid


def _distinct(keys: Ints, counts: Ints, size: int) -> Ints:
    """The first `size` different ones of each job's keyed numbers below counts [m]; int64 [m, size]."""
    draws = 2 * size
    while True:
        number = (fold_array(keys[:, None], "lot", np.arange(draws)) & MOST_POSITIVE) % counts[:, None]
        order = np.argsort(number, axis=1, kind="stable")
        again = np.zeros(number.shape, dtype=bool)
        np.put_along_axis(again, order[:, 1:], np.diff(np.take_along_axis(number, order, 1), axis=1) == 0, 1)
        if (draws - again.sum(1) >= size).all():
            return np.take_along_axis(number, np.argsort(again, axis=1, kind="stable")[:, :size], 1)
        draws *= 2


def _orders(keys: Ints, counts: Ints, begin: Ints, epochs: Ints) -> tuple[Ints, Ints]:
    """Keyed orders of the samples of jobs [m] in `epochs` epochs from `begin`, one list; where each job's part begins, [m]."""
    owner = np.repeat(np.arange(len(keys)), epochs)
    assert len(owner) <= MOST_SHUFFLES, "more shuffles in one table than a sort key has room for"
    nth = begin[owner] + np.arange(len(owner)) - np.repeat(np.cumsum(epochs) - epochs, epochs)
    length = counts[owner]
    group = np.repeat(np.arange(len(owner)), length)
    place = np.arange(len(group)) - np.repeat(np.cumsum(length) - length, length)
    score = scramble(np.repeat(fold_array(keys[owner], "order", nth), length) ^ place)
    low = int(counts.max()).bit_length()  # the place itself decides between equal scores, so any sort gives the one order
    middle = ((1 << (63 - GROUP_BITS)) - 1) >> low << low
    ranked = np.sort((group << (63 - GROUP_BITS)) | (score & middle) | place)
    return ranked & ((1 << low) - 1), np.cumsum(counts * epochs) - counts * epochs
