"""Metrics of policies: what their episodes return, and how many are a success."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsim.base.errors import SettingError
from fedsim.method.strategy import Strategy
from fedsim.metrics.metrics import Metric
from fedsim.metrics.view import View
from fedsim.models.policy import Rollout
from fedsim.task.task import Task


@dataclass(frozen=True)
class Return(Metric):
    """Mean return of the test episodes, `test/return`, and the share of them that succeed, `test/success`.

    With peers, the mean over their models.
    """

    name: ClassVar[str] = "return"

    def check(self, task: Task, strategy: Strategy, key: str) -> None:
        if not isinstance(task.model, Rollout):
            raise SettingError(key, "return is of episodes, and the samples are no states of an environment")

    def measure(self, view: View) -> dict[str, float]:
        found = torch.stack([view.test_outputs(hearer)[0].double().mean(0) for hearer in range(len(view.models))]).mean(0)
        return {"test/return": float(found[0]), "test/success": float(found[1])}
