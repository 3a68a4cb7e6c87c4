"""Where something else may be meant, or a run can only come to nothing: warnings, each with its key, known before the run starts."""

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from math import inf

import numpy as np
from torch import Tensor

from fedsim.base.keys import fold
from fedsim.base.text import count, counted, duration
from fedsim.federation.federation import Federation
from fedsim.models.policy import Rollout
from fedsim.run.found import class_name, test_nodes
from fedsim.scenario.settings import Stop
from fedsim.schedule import Rounds
from fedsim.schedule.sampling import Weighted
from fedsim.settings.values import Constant
from fedsim.task.task import Task
from fedsim.world.availability import Bernoulli

MISSING = ("", "nan", "none", "null", "na", "n/a", "<na>", "?")  # what a label is called where there is none
FEW = 10  # test samples of which an accuracy says little


def doubts(fed: Federation, stop: Stop) -> list[str]:
    """Sentences `key: ...` on a run that ends at these stops."""
    data = [*_labels(fed.task), *_numbers(fed.task), *_tests(fed.task)]
    return [*data, *_training(fed), *_short(fed, stop), *_asked(fed), *_broken(fed), *_late(fed, stop.seconds)]


def _some(numbers: Tensor, task: Task) -> str:
    """`3`, `1, 2, 3, ...`: classes by name."""
    return ", ".join(class_name(task, number) for number in numbers[:5].tolist()) + (", ..." if len(numbers) > 5 else "")


def _labels(task: Task) -> Iterator[str]:
    """Classes that nobody has, or that only one of the two sets has."""
    if not task.labelled or task.elsewhere:
        return
    train, test = (labels.bincount(minlength=task.classes) for labels in (task.targets, task.test_targets))
    none, unlearnt, untested = ((train + test) == 0, (train == 0) & (test > 0), (train > 0) & (test == 0))
    if none.any():
        where, cure = none.nonzero()[:, 0], "number labels from 0 without gaps, or give names"
        if where.tolist() == [0]:
            yield f"task.data: no row has class 0 of {task.classes}: labels count from 1, and classes from 0; {cure}"
        else:
            what = f"{len(where)} of {task.classes} classes have no row ({_some(where, task)})"
            yield f"task.data: {what}: classes count from 0 to the largest label; {cure}"
    if unlearnt.any():
        where = unlearnt.nonzero()[:, 0]
        rows = counted(int(test[where].sum()), "test row")
        yield f"task.data: only the test set has the classes {_some(where, task)} ({rows}): nobody can learn them"
    if untested.any():
        yield f"task.data: the test set has no row of the classes {_some(untested.nonzero()[:, 0], task)}"
    for number in (unlearnt | (train > 0)).nonzero()[:, 0].tolist() if task.given and task.given.names else ():
        called, having = class_name(task, number), int(train[number] + test[number])
        if called.strip().lower() in MISSING or (called in ("-1", "-1.0") and task.classes > 2):
            yield f"task.data: `{called}` is a class like the others ({counted(having, 'row')}): leave rows out whose label is missing"
    filled = int((train > 0).sum())
    if filled == 1:
        yield f"task.data: all training rows have the class {class_name(task, int(train.argmax()))}: there is nothing to tell apart"
    if filled > 20 and 3 * filled > len(task.targets):
        yield f"task.data: {count(filled)} classes among {count(len(task.targets))} rows; for a regression set `task.loss: squared_error`"


def _numbers(task: Task) -> Iterator[str]:
    """Targets that may be classes, and data that are all the same."""
    given = task.given
    if not task.classes and given and not given.named_loss and given.whole:
        some = ", ".join(f"{value:g}" for value in given.whole[:5]) + (", ..." if len(given.whole) > 5 else "")
        yield f"task.data: y holds only {some} as {given.y}, which is taken for a regression; for classes set `task.loss: cross_entropy`"
    if not task.classes and given and not given.named_loss and given.one_hot:
        yield "task.data: each row of y has one 1 and else 0, which is taken for a regression; `y.argmax(1)` makes classes of it"
    if not task.classes and len(task.targets) and _alike(task.targets) and not isinstance(task.model, Rollout):
        yield f"task.data: all training rows have the same target {task.targets[0].tolist()}"
    if len(task.inputs) > 1 and _alike(task.inputs):
        yield "task.data: all training rows of x are the same"
    if task.inputs.dim() == 4 and task.inputs.is_floating_point() and task.span[0] >= 0 and 2 < task.span[1] <= 255:
        high = f"{task.span[1]:g}"
        yield f"task.data: pictures with numbers up to {high} are taken as they are; as uint8 they are taken as 0 to 1, which trains better"


def _alike(rows: Tensor) -> bool:
    """Are all the first? The second mostly tells."""
    return bool((rows[:2] == rows[:1]).all()) and bool((rows == rows[:1]).all())


def _tests(task: Task) -> Iterator[str]:
    """Test samples that say little about nodes."""
    rows, given = len(task.test_inputs), task.given
    if rows < FEW:
        yield f"task.data: a test set of {counted(rows, 'row')}: " + (
            f"accuracy counts in steps of {100 / rows:.3g} %" if task.classes else "its loss says little"
        )
    if given and given.stray_ids:
        what = "none of the test set's ids is one of a node, so test rows belong to no node"
        yield f"task.partition.by: `{given.stray_ids}`: {what}"
    if task.test_owner is None:
        return
    nobody, having = int((task.test_owner < 0).sum()), test_nodes(task)
    if having < task.nodes:
        stray = f" ({counted(nobody, 'test row')} are of no node)" if nobody else ""
        what = "clients' accuracies, and the worst tenth of them, are those nodes' alone"
        yield f"task.data: {count(having)} of {count(task.nodes)} nodes have test rows{stray}: {what}"


def _training(fed: Federation) -> Iterator[str]:
    train, task = fed.strategy.train, fed.task
    if isinstance(train.lr, Constant) and train.lr.value == 0 and not fed.strategy.forward_only:
        yield "train.lr: 0: nodes learn nothing"
    if task.importance is not None and not _counting(fed):
        cure = "; `strategy.weights: samples` would" if hasattr(fed.strategy, "weights") and fed.strategy.weighs else ""
        yield f"task.client_weights: `{fed.strategy.name}` does not weigh clients by them{cure}"
    single = task.nodes if train.batch_size(task) == 1 else int((task.counts == 1).sum())
    if task.buffers.size and single:
        who = "batches of one row" if single == task.nodes else f"{counted(single, 'node')} with one row"
        yield f"train.batch: BatchNorm and {who}: one value has no spread, so dense layers pass nothing on; GroupNorm has no such need"


def _counting(fed: Federation) -> bool:
    """Does it matter how much a client counts?"""
    sampled = isinstance(fed.schedule, Rounds) and isinstance(fed.schedule.sampling, Weighted)
    strategy = fed.strategy
    return sampled or (strategy.weighs and strategy.kind == "server" and getattr(strategy, "weights", "samples") != "uniform")


def _short(fed: Federation, stop: Stop) -> Iterator[str]:
    """Methods and clips that begin after some steps of a client, in a run of fewer."""
    train, task = fed.strategy.train, fed.task
    jobs = min(
        inf if stop.rounds is None else stop.rounds * fed.schedule.most_messages(task.nodes) / task.nodes,
        inf if stop.updates is None else stop.updates / task.nodes,
    )
    steps, per_epoch = train.plan(task.counts, train.batch_size(task))
    a_job, epochs = float(steps.double().mean()), float((steps / per_epoch).mean())
    if due := fed.strategy.begins(jobs * a_job, jobs * epochs):
        yield f"strategy.{due}"
    if train.clip and (due := train.clip.begins(a_job * (jobs if train.keeps else 1))):
        yield f"train.clip.{due}"


def _asked(fed: Federation) -> Iterator[str]:
    """Nodes that are never asked, or never there."""
    if isinstance(fed.schedule, Rounds):
        with suppress(NotImplementedError):  # an own sampling that knows no chances beforehand
            sampling, every = fed.schedule.sampling, np.arange(fed.nodes)
            chance = sampling.chances(every, fed.schedule.cohort.of(fed.nodes), fed.share, fed.nature.people, fed.key("cohort"))
            yield from _never(chance <= 0, "schedule.sampling", "a chance of 0 of being asked")
    if isinstance(there := fed.nature.availability, Bernoulli):
        chance = there.chance.floats(fed.nature.people, fold(fed.nature.key, "availability.chance"))
        yield from _never(chance <= 0, "world.availability", "a chance of 0 of being there")


def _never(mask: "np.ndarray[tuple[int], np.dtype[np.bool_]]", key: str, what: str) -> Iterator[str]:
    number = int(mask.sum())
    if number == len(mask):
        yield f"{key}: all nodes have {what}: nothing is ever merged"
    elif number:
        yield f"{key}: {count(number)} of {count(len(mask))} nodes have {what}: nothing is ever learnt from their data"


def _broken(fed: Federation) -> Iterator[str]:
    """Nodes whose work never arrives."""
    crash, lost = fed.nature.crash >= 1, fed.nature.lost >= 1
    if not fed.schedule.peers:
        yield from _never(crash | lost, "world.faults", "only jobs that crash, or whose update gets lost")
        return
    yield from _never(crash, "world.faults.crash", "only jobs that crash")
    if lost.all():
        yield "world.faults.lost: no message between peers ever arrives: each learns alone"


def _late(fed: Federation, end: Fraction | None) -> Iterator[str]:
    """Jobs that take longer than they may."""
    schedule, takes = fed.schedule, fed.durations()
    fastest, often = f"the fastest job takes {_time(fed, takes.min())}", "" if fed.nature.steady else ", as long as nothing varies"
    if isinstance(schedule, Rounds) and schedule.deadline is not None and schedule.late == "drop":
        late = takes > fed.ticks(schedule.deadline)
        if late.all():
            yield f"schedule.deadline: {duration(float(schedule.deadline))}, and {fastest}{often}: nothing is ever merged"
        elif late.any():
            some = f"{count(int(late.sum()))} of {count(fed.nodes)} nodes"
            yield f"schedule.deadline: {duration(float(schedule.deadline))} is too short for {some}{often}: their work is always dropped"
    if end and not schedule.peers and takes.min() > fed.ticks(end):
        yield f"stop.seconds: {duration(float(end))}, and {fastest}{often}: the run ends before anything is merged"


def _time(fed: Federation, ticks: int) -> str:
    return duration(float(ticks) / fed.nature.per_second)


def nothing_merged(fed: Federation, reason: str) -> str:
    """Why a run that came to its end for a reason is none: what became of its jobs."""
    left = f", {count(fed.in_flight)} still at work" if fed.in_flight else ""
    jobs = f"{counted(fed.sent, 'job')} begun, {count(fed.ledger.dropped)} lost or cut{left}" if fed.sent else "nobody was asked to work"
    return f"nothing merged ({reason}; {jobs})"
