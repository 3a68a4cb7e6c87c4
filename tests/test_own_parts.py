"""Users' own strategy, model, data, partition, metric and topology, named `module:Name` in a scenario."""

import sys
from pathlib import Path

import pytest
from launch import TASKS, simulate

from fedsim.runner import Run
from fedsim.scenario import load

OWN = '''
from dataclasses import dataclass
import numpy as np
import torch
from fedsim.metrics import Metric
from fedsim.data.partition import Partition
from fedsim.part import setting
from fedsim.topology import Topology
from strategies.dsgd import Dsgd
from strategies.fedavg import FedAvg

@dataclass(frozen=True)
class Halved(FedAvg):
    """Takes half of the mean update."""
    factor: float = setting(0.5, "share of the update", gt=0)

    def merge(self, state, inbox):
        return state | {"model": state["model"] + self.factor * inbox.mean("update")}

class Net(torch.nn.Module):
    def __init__(self, input_shape: tuple, outputs: int, width: int = 3):
        super().__init__()
        self.first = torch.nn.Linear(int(np.prod(input_shape)), width)
        self.last = torch.nn.Linear(width, outputs)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x.flatten(1))))

def blobs(count: int, seed: int = 0):
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 3, count)
    return {"x": np.eye(3)[y] + draw.normal(size=(count, 3)), "y": y, "ward": y % 2}

@dataclass(frozen=True)
class Odd(Partition):
    """Even and odd samples."""
    nodes: int = setting(2, "nodes", ge=1)

    def split(self, labels, keys, key):
        return np.arange(len(labels)) % self.nodes

@dataclass(frozen=True)
class Size(Metric):
    """Length of the model."""
    def measure(self, view):
        return {"model/length": float(view.models.norm())}

@dataclass(frozen=True)
class Star(Topology):
    """All through node 0."""
    def matrix(self, nodes, step):
        matrix = torch.eye(nodes, dtype=torch.float64)
        matrix[0] = 1 / nodes
        return matrix

    def degree(self, nodes):
        return 1

    def partner(self, node, nodes, key):
        return 0
'''


@pytest.fixture
def own(folder: Path) -> Path:
    """The folder of `own_parts.py`, which may stand in a scenario beside it."""
    (folder / "own_parts.py").write_text(OWN)
    sys.modules.pop("own_parts", None)
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        ("strategy={name: own_parts:Halved, factor: 0.25}",),
        ("task.model={name: own_parts:Net, width: 4}",),
        ("task.data={name: own_parts:blobs, count: 90}", "task.partition={name: iid, nodes: 5}"),
        ("task.data={name: own_parts:blobs, count: 90}", "task.partition={name: natural, by: ward}", "schedule.cohort=2"),
        ("task.partition={name: own_parts:Odd, nodes: 6}",),
        ("evaluate.metrics=[loss, own_parts:Size]",),
        ("strategy=dsgd", "schedule={name: gossip, topology: own_parts:Star}"),
    ],
)
def test_own_parts(own: Path, settings: tuple[str, ...]) -> None:
    run = simulate(own, *settings)
    assert run.info["reason"] == "4 rounds"
    assert (run.path / "parts" / "own_parts.py").read_text() == OWN
    assert ("model/length" in run.info["final"]) == ("own_parts:Size" in settings[0])
    # What is written runs by itself: a copy of the scenario, beside the user's file, gives the same model.
    again = (own / "again.yaml", own / "again")
    again[0].write_text((run.path / "scenario.yaml").read_text())
    [loaded] = load(again[0])
    assert (loaded.hash, Run(loaded, TASKS.get(loaded)).execute(again[1])["model"]) == (run.info["hash"], run.info["model"])
