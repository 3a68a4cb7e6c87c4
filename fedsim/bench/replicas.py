"""What many machines with equal replicas cost: `python -m fedsim.bench.replicas MACHINES` prints the peak memory of a process (MiB)."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from fedsim.bench.figures import Figure, limit
from fedsim.bench.runs import alone, opened
from fedsim.bench.scale import peak
from fedsim.run.tune import advance


def exchange(machines: int) -> str:
    """A byte a machine and round; 954,010 parameters."""
    task = f"{{data: 'fedsim.bench:images', partition: {{name: iid, nodes: {machines}}}, model: {{name: mlp, hidden: [1200]}}}}"
    return f"task: {task}\nstrategy: {{name: one_byte, batch: 8}}\n"


def replicas(trials: int) -> list[Figure]:
    """Peak memory of 64 machines beside that of one, each in a process of its own."""
    return [limit("one byte, memory of 64 machines beside one", _alone(64) / _alone(1), 1.5)]


def _alone(machines: int) -> float:
    """MiB."""
    return float(alone(f"one byte, {machines} machines", "fedsim.bench.replicas", str(machines)))


def measurements() -> dict[str, Callable[[int], list[Figure]]]:
    """Those of this module, by name."""
    return {"replicas": replicas}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        run = opened(Path(folder), exchange(int(sys.argv[1])))
        advance(run, 3)
        run.close("finished")
    print(peak())
