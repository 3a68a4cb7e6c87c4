"""How busy this machine is while a run goes on: processors, memory, disk, network and GPUs, as MLflow's own monitors see them."""

from time import monotonic, time
from typing import Any

EVERY = 10.0  # seconds that a point is the mean of


class Machine:
    """Looked at now and then; a point each `EVERY` seconds, with the seconds since the first look as step."""

    def __init__(self) -> None:
        self.began = self.last = monotonic()
        self.monitors: list[Any] | None = None
        self.points = list[tuple[int, int, dict[str, float]]]()

    def look(self) -> None:
        """Adds to the point that is being made."""
        if self.monitors is None:
            self.monitors = _monitors()
        for monitor in self.monitors:
            monitor.collect_metrics()
        now = monotonic()
        if now - self.last >= EVERY:
            values: dict[str, float] = {}
            for monitor in self.monitors:
                values |= monitor.aggregate_metrics()
                monitor.clear_metrics()
            self.points.append((int(1000 * time()), int(now - self.began), values))
            self.last = now

    def taken(self) -> list[tuple[int, int, dict[str, float]]]:
        """(milliseconds since 1970, step, values by name) of the points since the last time."""
        points, self.points = self.points, []
        return points


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]  # type: ignore[no-untyped-call]
    try:
        found.append(GPUMonitor())  # type: ignore[no-untyped-call]
    except Exception:  # no GPU, no driver, or not the package that asks it: whatever it says, there is nothing to see
        return found
    return found
