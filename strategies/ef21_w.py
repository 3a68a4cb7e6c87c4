"""EF21-W: Richtárik, Gasanov, Burlachenko 2024, "Error Feedback Reloaded: From Quadratic to Arithmetic Mean of Smoothness Constants",
https://arxiv.org/abs/2402.10774: EF21 in which rough nodes count more, and its step 1/(L + L_AM xi)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fedsim import Local, setting
from fedsim.base.devices import sent
from fedsim.base.errors import SettingError
from fedsim.task.smoothness import Smoothness, smoothness
from fedsim.task.task import Task
from strategies.ef21 import Ef21


@dataclass(frozen=True)
class Ef21W(Ef21):
    """x <- x - lr sum w_i g_i with w_i = L_i / sum L_j, and g_i estimates grad f_i / (n w_i): c_i = C(grad f_i(x) / (n w_i) - g_i).

    With a codec that scales as its argument does, as top-k, x is what it is in EF21 at the same step. A node is told its w_i beforehand.
    """

    name: ClassVar[str] = "ef21_w"
    source: ClassVar[str] = "Richtárik et al. 2024"

    theory: Literal["new", "rare"] = setting("new", "1/(L + L_AM xi), or for features that few nodes have")

    def weights(self, task: Task) -> Tensor:
        each = known(task).each.to(task.init.device)
        return each / each.sum()

    def scaled(self, gradient: Tensor, local: Local) -> Tensor:
        found = known(local.task)
        factor = sent(found.each, local.nodes.device)[local.nodes] / found.mean  # n w_i
        return gradient / factor[:, None].to(gradient.dtype)


def known(task: Task) -> Smoothness:
    """Raises SettingError where the L_i aren't known."""
    try:
        return smoothness(task)
    except ValueError as error:
        raise SettingError("strategy", f"`ef21_w` weighs nodes by how smooth they are: {error}; `ef21` does without") from error
