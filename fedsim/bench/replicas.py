"""What many machines with equal replicas cost: `python -m fedsim.bench.replicas MACHINES` prints the peak memory of a process (MiB)."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from fedsim.bench.figures import Figure, limit, say
from fedsim.bench.runs import advance, opened
from fedsim.bench.scale import peak
from fedsim.errors import RunError


def exchange(machines: int) -> str:
    """A byte a machine and round; 954,010 parameters."""
    task = f"{{data: 'fedsim.bench:images', partition: {{name: iid, nodes: {machines}}}, model: {{name: mlp, hidden: [1200]}}}}"
    return f"task: {task}\nstrategy: {{name: one_byte, batch: 8}}\ncheckpoint: none\n"


def replicas(trials: int) -> list[Figure]:
    """Peak memory of 64 machines beside that of one, each in a process of its own."""
    return [limit("one byte, memory of 64 machines beside one", _alone(64) / _alone(1), 1.5)]


def _alone(machines: int) -> float:
    """MiB."""
    say(f"one byte, {machines} machines: a process of its own")
    command = [sys.executable, "-P", "-m", "fedsim.bench.replicas", str(machines)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"bench: one byte, {machines} machines: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout)


def measurements() -> dict[str, Callable[[int], list[Figure]]]:
    """Those of this module, by name."""
    return {"replicas": replicas}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        run = opened(Path(folder), exchange(int(sys.argv[1])))
        advance(run, 3)
        run.close("finished")
    print(peak())
