"""The best model so far: which evaluation it was, what it weighs, and how long none has been better."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.settings.values import Every

FALLING = re.compile(  # words in names of metrics that are better where they are lower
    r"(^|_)(loss|rmse|mae|mse|ece|eer|error|brier|distance|divergence|deviance|probability_score|gradient_norm|consensus|std)(_|$)"
)


def falls(metric: str) -> bool:
    """Is this metric better where it is lower? `test/brier`, `clients/loss_worst_10`, of an output `test/mean_squared_error/0`."""
    words = metric.split("/")
    return bool(FALLING.search(words[1] if words[0] == "test" and len(words) > 1 else words[-1]))


class Best:
    """Of all evaluations the first at which `metric` was best, and its models; nothing is kept where `metric` is None.

    Better is what is higher by more than `gain`, or lower where it `falls`. The models [h, d] and their running
    statistics [h, b] are copies.
    """

    keeps: ClassVar[tuple[str, ...]] = ("value", "round", "seconds", "last", "models", "statistics")

    def __init__(self, metric: str | None, gain: float = 0.0) -> None:
        self.metric, self.gain, self.value = metric, gain, math.nan
        self.round, self.seconds = 0, 0.0
        self.last: list[float] = [0, 0.0]  # round and seconds of the last evaluation that measured it
        self.models: Tensor | None = None
        self.statistics: Tensor | None = None

    def seen(self, record: Mapping[str, Any], models: Tensor, statistics: Tensor) -> None:
        """An evaluation. Raises SettingError where the first one lacks the metric."""
        if self.metric is None:
            return
        value = record.get(self.metric)
        if value is None:
            self._known(record)
        if value is None or math.isnan(value):
            return
        self.last = [record["round"], record["time/seconds"]]
        sign = -1 if falls(self.metric) else 1
        if self.models is None or sign * (value - self.value) > self.gain:
            self.value, (self.round, self.seconds) = value, (record["round"], record["time/seconds"])
            self.models, self.statistics = models.clone(), statistics.clone()

    def _known(self, record: Mapping[str, Any]) -> None:
        if self.models is None:
            known = [name for name in record if not name.startswith(("time/", "traffic/", "work/")) and name not in ("round", "version")]
            near = difflib.get_close_matches(str(self.metric), known, 1)
            hint = f"; did you mean `{near[0]}`?" if near else f", only {', '.join(known)}"
            raise SettingError("evaluate.best", f"`{self.metric}` is not measured{hint}")

    def waited(self, patience: Every | None, last: Sequence[float] = ()) -> float:
        """How long no evaluation has been better, as a share of `patience`; by default up to the `last` one (round and seconds)."""
        if patience is None or self.models is None:
            return 0.0
        rounds, seconds = (end - start for end, start in zip(last or self.last, (self.round, self.seconds), strict=True))
        return rounds / patience.rounds if patience.rounds else seconds / float(patience.seconds or math.inf)

    def told(self) -> dict[str, Any]:
        """What run.json says of it."""
        found = {"metric": self.metric, "value": self.value, "round": self.round, "seconds": self.seconds}
        return {} if self.models is None else {"best": found}
