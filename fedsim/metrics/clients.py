"""Each client's own numbers, kept as arrays with the run."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsim.metrics.metrics import Metric
from fedsim.metrics.view import View


@dataclass(frozen=True)
class PerClient(Metric):
    """Loss and accuracy of each client on test data like its own, by the model it hears: arrays in the run's folder.

    `per_client/VERSION.npz` has `nodes` int64 [k], `loss` and `accuracy` float64 [k], nan where there is none, and `round`; of over 10,000
    clients as many. Test data are as for `clients`. It gives no number.
    """

    sums: ClassVar[bool] = True

    def measure(self, view: View) -> dict[str, float]:
        nodes = np.arange(view.task.nodes) if len(view.clients) == view.task.nodes else view.task.some()
        arrays = {"nodes": nodes, "loss": view.client_losses, "accuracy": view.clients}
        view.arrays["per_client"] = {name: one if isinstance(one, np.ndarray) else one.cpu().numpy() for name, one in arrays.items()}
        view.arrays["per_client"]["round"] = np.array(view.round)
        return {}
