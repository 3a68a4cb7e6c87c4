"""What ends a run, how much of it is done, and what can't be measured."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fedsim.base.errors import SettingError
from fedsim.base.text import counted, duration, short_percent, size
from fedsim.federation.federation import Federation
from fedsim.federation.health import Health
from fedsim.metrics.metrics import Accuracy, Consensus, Metric, TestLoss
from fedsim.scenario.settings import Evaluate, Stop

SAID: dict[str, Callable[[Any], str]] = {  # in the order in which they are asked
    "rounds": lambda goal: counted(goal, "round"),
    "updates": lambda goal: counted(goal, "update"),
    "steps": lambda goal: counted(goal, "step"),
    "bytes": size,
    "seconds": lambda goal: duration(float(goal or 0)),
    "wall": lambda goal: f"{duration(float(goal))} of wall time",
    "accuracy": lambda goal: f"accuracy {short_percent(goal)}",
    "epsilon": lambda goal: f"epsilon {goal:g}",
    "loss": lambda goal: f"loss {goal:g}",
    "patience": lambda goal: f"no better for {counted(goal.rounds, 'round') if goal.rounds else duration(float(goal.seconds))}",
}
SPENT = ("rounds", "updates", "steps", "bytes", "seconds", "wall", "epsilon")  # what only grows
SHARES = ("epsilon", "patience")
MEASURED = ("accuracy", "loss", "patience")  # what an evaluation tells
DECIDED = (*MEASURED, "wall")  # among peers on real machines, after an evaluation, by who has seen all of them


def by_name(name: str, stop: Stop) -> str:
    """A stop as the reason of an end; one that is not set is none: what ended is the schedule."""
    goal = getattr(stop, name)
    return "its schedule's own end" if goal is None else SAID[name](goal)


def reached(stop: Stop, so_far: Mapping[str, float], among: Iterable[str] = SAID) -> str:
    """The first stop that is reached by what there is so far, by name; "" for none. Of those in SHARES that is a share of it."""
    for name in among:
        goal = getattr(stop, name)
        if goal is None:
            continue
        if so_far[name] <= goal if name == "loss" else so_far[name] >= (1 if name in SHARES else goal):
            return by_name(name, stop)
    return ""


def awaits_word(stop: Stop) -> bool:
    """Do peers on real machines wait after each evaluation for a word whether they go on?"""
    return any(getattr(stop, name) is not None for name in DECIDED)


def progress(stop: Stop, so_far: Mapping[str, float]) -> float:
    """How much is done, 0 to 1, by the stop that is nearest; 0 where no end is known."""
    goals = {name: 1 if name == "epsilon" else getattr(stop, name) for name in SPENT if getattr(stop, name)}
    return min(1.0, max([0.0, *(float(so_far[name]) / float(goal) for name, goal in goals.items())]))


def diverged(fed: Federation, loss: float) -> str:
    """In one line, with the cure."""
    health = fed.companion(Health) or Health()
    if health.senders:
        return f"diverged in round {fed.round}: the test loss is {loss} {health.after()}; try a smaller `train.lr`, or `train.clip`"
    what = "no learning rate mends that; see `task.data`, `task.model` and `task.loss`"
    return f"the test loss of the first model is {loss}, {health.after()}: {what}"


def measurable(stop: Stop, evaluation: Evaluate, fed: Federation) -> None:
    """Raises SettingError where a metric does not fit the run, or a stop or the target waits for a number that is never measured."""
    for place, one in enumerate(evaluation.metrics):
        if (fed.task.architectures or not fed.strategy.shared) and not one.sums:
            why = "groups have models of their own (`task.models`)" if fed.task.architectures else ""
            why = why or f"`{fed.strategy.name}` leaves all models with the clients"
            raise SettingError(f"evaluate.metrics.{place}", f"`{one.name}` looks at a shared model, and {why}")
        one.check(fed.task, fed.strategy, f"evaluate.metrics.{place}")
        if fed.task.apart and not (one.sums or isinstance(one, Consensus)):
            what = f"`{one.name}` needs test samples at the server, and only nodes have some; `accuracy`, `loss`, `clients` can do without"
            raise SettingError(f"evaluate.metrics.{place}", what)
    if evaluation.gain and not evaluation.best:
        raise SettingError("evaluate.gain", "nothing is to be better: neither `evaluate.best` nor `stop.patience` is set")
    needs = {"stop.accuracy": stop.accuracy, "evaluate.target": evaluation.target}
    waits: dict[str, type[Metric] | None] = {key: None if goal is None else Accuracy for key, goal in needs.items()}
    waits |= {"stop.loss": None if stop.loss is None else TestLoss}
    waits |= {"evaluate.best": {"test/loss": TestLoss, "test/accuracy": Accuracy}.get(evaluation.best or "")}
    for key, metric in waits.items():
        if metric and not any(isinstance(one, metric) for one in evaluation.metrics):
            raise SettingError(key, f"never reached: `evaluate.metrics` lacks `{metric.name}`")
        if metric is Accuracy and not fed.task.classes:
            raise SettingError(key, "never reached: the targets of this task are no classes")
