"""Evaluations as MLflow's points: along rounds, and what people compare also along seconds and kilobytes."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

AXES = {"x_by_second": ("time/seconds", 1), "x_by_kilobyte": ("traffic/bytes", 1000)}  # x: after all others in MLflow's lists
AGAIN = ("accuracy", "loss")  # logged once more along each of AXES
FURTHEST = 2**63 - 1  # step


def batches(
    points: Sequence[Sequence[tuple[str, float, int]]], done: int, most: int
) -> Iterator[tuple[int, list[tuple[int, str, float, int]]]]:
    """(evaluations uploaded after it, [(evaluation, name, value, step)]) in requests of at most `most` metrics, or one evaluation."""
    batch: list[tuple[int, str, float, int]] = []
    for at in range(done, len(points)):
        if batch and len(batch) + len(points[at]) > most:
            yield at, batch
            batch = []
        batch += [(at, *one) for one in points[at]]
    if batch:
        yield len(points), batch


def numbers_of(record: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """An evaluation's numbers, (name, value, step): the round as step, accuracy and loss again with seconds and kilobytes as step.

    Uploaded, their time is the run's start plus its wall seconds, so that the same line uploaded twice is the same point.
    """
    numbers = dict(_numbers(record.items()))
    points = [(name, value, int(record["round"])) for name, value in numbers.items()]
    for prefix, (axis, unit) in AXES.items():
        again = [name for name in numbers if name.rpartition("/")[2].startswith(AGAIN) and math.isfinite(numbers.get(axis, math.nan))]
        points += [(f"{prefix}/{name}", numbers[name], min(int(numbers[axis] / unit), FURTHEST)) for name in again]
    return points


def _numbers(items: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, float]]:
    for name, value in items:
        if isinstance(value, int | float) and name != "round":
            with suppress(OverflowError):
                yield name, float(value)
