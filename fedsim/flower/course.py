"""What a ServerApp does with what it hears, seen from its Grid alone: merges, versions and evaluations."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from fedsim.federation.ledger import Ledger

EXAMPLES = "num-examples"  # the weight of a reply, as Flower's strategies take it
PREFIXES = ("train_", "test_", "eval_", "evaluate_", "val_", "centralized_", "federated_", "server_")
SHORT = {"acc": "accuracy", "val_acc": "accuracy"}
SPARSE = 100  # where only training is seen, evaluations are recorded each so many-th part of the versions so far


def numbers(content: RecordDict) -> dict[str, float]:
    """The plain numbers of a content's metrics, by name, NaN and infinity among them."""
    records = [record for record in content.values() if isinstance(record, MetricRecord)]
    return {name: value for record in records for name, value in record.items() if isinstance(value, int | float)}


def told(content: RecordDict) -> dict[str, float]:
    """Those that are finite."""
    return {name: value for name, value in numbers(content).items() if math.isfinite(value)}


def examples(content: RecordDict) -> float | None:
    """How many samples a reply says that it took; None where it doesn't say."""
    found = told(content).get(EXAMPLES)
    return None if found is None else max(found, 0)


def plain(name: str) -> str:
    """A metric's name as fedsim's reports know it: `eval_acc` is `accuracy`."""
    short = name.lower()
    while cut := next((prefix for prefix in PREFIXES if short.startswith(prefix)), ""):
        short = short.removeprefix(cut)
    short = SHORT.get(short, short)
    return short if short in ("accuracy", "loss") else name


class Mean:
    """Metrics of replies, weighted by their samples; a reply that tells none counts as one.

    Of a metric that is not finite in some reply there is no mean, but the number of those replies, `NAME_not_finite`.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.weights: dict[str, float] = {}
        self.broken = Counter[str]()

    def add(self, content: RecordDict) -> None:
        found = told(content)
        self.broken.update(numbers(content).keys() - found.keys())
        weight = max(found.pop(EXAMPLES, 1.0), 0.0)
        for name, value in found.items():
            self.sums[name] = self.sums.get(name, 0.0) + weight * value
            self.weights[name] = self.weights.get(name, 0.0) + weight

    def named(self, room: str) -> dict[str, float]:
        """`room/NAME` of each."""
        whole = [name for name, weight in self.weights.items() if weight > 0 and name not in self.broken]
        means = {f"{room}/{plain(name)}": self.sums[name] / self.weights[name] for name in whole}
        return means | {f"{room}/{plain(name)}_not_finite": float(count) for name, count in self.broken.items()}


@dataclass
class Batch:
    """Evaluations of one version: how many are open, and what the others told."""

    open: int = 0
    mean: Mean = field(default_factory=Mean)


class Course:
    """Versions of the ServerApp's model, and evaluations as they come to be known.

    The replies to `train` messages that were pulled are merged when other arrays go out than before, or the ServerApp evaluates: that is
    a version and a round. Of each version's `evaluate` replies the weighted mean is taken when all have ended. What an evaluation at the
    server (`evaluate_fn` of `Strategy.start`) or a MetricRecord in the ServerApp's `Context.state` tells is known at once.
    """

    def __init__(self, ledger: Ledger, clock: Callable[[], int], record: Callable[[dict[str, float]], None]) -> None:
        """`record` is given the metrics of each evaluation."""
        self.ledger, self.clock, self.record = ledger, clock, record
        self.version = 0
        self.arrays: tuple[Any, ...] = ()  # that went out last
        self.heard: list[tuple[int, int, int]] = []  # node, job and version of replies that are not merged
        self.trained = Mean()
        self.batches: dict[int, Batch] = {}
        self.news: dict[str, float] = {}  # an evaluation that is being made
        self.training: dict[str, float] = {}  # of the last merge, not yet recorded
        self.due = 0  # the version from which training alone is recorded
        self.last: tuple[int, dict[str, float], int] = (-1, {}, -1)  # version, metrics and time of the last record
        self.central = False  # the server evaluates itself
        self.state: RecordDict | None = None  # of the ServerApp's Context
        self.seen: dict[str, dict[str, float]] = {}
        self.result: ArrayRecord | None = None

    def pushed(self, message: Message) -> int:
        """A message goes out; the version of the model that it carries."""
        kind = message.metadata.message_type.partition(".")[0]
        if kind in ("train", "evaluate"):
            records = [record for record in message.content.values() if isinstance(record, ArrayRecord)]
            arrays = tuple(array for record in records for array in record.values())
            if self.heard and arrays and not same(arrays, self.arrays):
                self.merge()
            self.arrays = arrays or self.arrays
        if kind == "evaluate":
            self.batches.setdefault(self.version, Batch()).open += 1
        elif kind == "train":
            self.write()
        return self.version

    def ended(self, message: Message, version: int, node: int, job: int, reply: Message | None) -> None:
        """The ServerApp has a reply, or none will ever come."""
        kind = message.metadata.message_type.partition(".")[0]
        well = reply is not None and reply.has_content()
        if kind == "train" and well and reply:
            self.heard.append((node, job, version))
            self.trained.add(reply.content)
        if kind == "evaluate":
            batch = self.batches[version]
            batch.open -= 1
            if well and reply:
                batch.mean.add(reply.content)
            if not batch.open:
                self._close(version)

    def _close(self, version: int) -> None:
        found = self.batches.pop(version).mean.named("clients")
        self.news |= found
        if not self.central:  # clients' data are all that there is to test on
            self.news |= {f"test/{name}": found[f"clients/{name}"] for name in ("accuracy", "loss") if f"clients/{name}" in found}

    def noted(self, metrics: Mapping[str, Any] | None) -> None:
        """The server evaluated its model itself."""
        self.merge()
        found = told(RecordDict({"metrics": MetricRecord(dict(metrics))})) if metrics else {}
        self.news |= {f"test/{plain(name)}": float(value) for name, value in found.items()}

    def look(self) -> None:
        """Takes what is new among the metrics in the ServerApp's state."""
        if not self.state:
            return
        for name, record in self.state.items():
            found = told(RecordDict({name: record}))
            if found and found != self.seen.get(name):
                self.seen[name], self.central = found, True
                self.noted(found)

    def merge(self) -> None:
        """What was heard is in the model from now on."""
        if not self.heard:
            return
        self.version += 1
        nodes, jobs, versions = (np.array(column, dtype=np.int64) for column in zip(*self.heard, strict=True))
        ages = self.version - 1 - versions
        self.ledger.merged(ages, 0)
        self.ledger.add("merge", len(nodes), time=self.clock(), version=self.version, node=nodes, job=jobs, staleness=ages)
        self.training, self.heard, self.trained = self.trained.named("train"), [], Mean()

    def moves(self) -> None:
        """The clock is about to: what is known of now is recorded."""
        if self.news:
            self.write()

    def write(self) -> None:
        """Records the evaluation that was being made, if any."""
        if not self.news and (not self.training or self.version < self.due):
            return
        found, self.news, self.training = self.training | self.news, {}, {}
        self.due = self.version + max(1, self.version // SPARSE)
        self._record(found)

    def close(self) -> None:
        """Takes in what was heard last; the end has a record."""
        self.look()
        self.merge()
        for version in [version for version, batch in self.batches.items() if batch.mean.sums]:
            self._close(version)
        found, self.news, self.training = self.training | self.news, {}, {}
        if not found and self.last[0] == self.version:  # the same model
            found = self.last[1]
        if self.last != (self.version, found, self.clock()):
            self._record(found)

    def _record(self, metrics: dict[str, float]) -> None:
        self.last = self.version, metrics, self.clock()
        self.record(metrics)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Meanwhile evaluations and results of `Strategy.start` are noted."""
        usual = Strategy.start

        @wraps(usual)
        def start(strategy: Strategy, *words: Any, **named: Any) -> Any:
            place = 6  # of `evaluate_fn`, after the strategy
            evaluate = words[place] if len(words) > place else named.get("evaluate_fn")
            if evaluate is not None:
                self.central = True

                def noting(round: int, arrays: ArrayRecord) -> Any:
                    found = evaluate(round, arrays)
                    self.noted(found)
                    return found

                words, named = words[:place], named | {"evaluate_fn": noting}
            result = usual(strategy, *words, **named)
            self.result = result.arrays
            return result

        Strategy.start = cast(Any, start)  # type: ignore[method-assign]
        try:
            yield
        finally:
            Strategy.start = usual  # type: ignore[method-assign]


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether arrays have the same bytes."""
    return len(one) == len(other) and all(a is b or (a.data is b.data or a.data == b.data) for a, b in zip(one, other, strict=True))
