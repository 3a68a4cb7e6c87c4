"""Users' own strategy, model, data, partition, metric and topology, named `module:Name` in a scenario."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import TASKS, TEXT, Forked, refused, simulate, write

from fedsim.base.errors import FedsimError
from fedsim.run.building import assemble, build
from fedsim.run.folders import RunFolder, find_runs
from fedsim.scenario import load

OWN = '''
from dataclasses import dataclass
import numpy as np
import torch
from fedsim import Metric
from fedsim.data.partition import Partition
from fedsim import setting
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
    def matrix(self, nodes, step, key):
        matrix = torch.eye(nodes, dtype=torch.float64)
        matrix[0] = 1 / nodes
        return matrix
'''


@pytest.fixture
def own(folder: Path) -> Path:
    """The folder of `own_parts.py`, which may stand in a scenario beside it."""
    (folder / "own_parts.py").write_text(OWN)
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
    assert (loaded.hash, build(loaded, TASKS).execute(again[1])["model"]) == (run.info["hash"], run.info["model"])


def test_a_runs_own_copies_count_as_what_they_were_copied_from(own: Path) -> None:
    run = simulate(own, "strategy=own_parts:Halved")
    [again] = load(run.path / "scenario.yaml")  # in the same process
    [first] = load(own / "small.yaml", ["strategy=own_parts:Halved"])
    assert again.hash == run.info["hash"] and again.scenario.strategy == first.scenario.strategy
    copy = run.path / "parts" / "own_parts.py"
    copy.write_text(copy.read_text() + "\n# changed\n")
    with pytest.raises(
        FedsimError, match=r"`own_parts` was imported from .*, not from .*; run such scenarios separately.*`fedsim resume --code new`"
    ):
        load(run.path / "scenario.yaml")


@pytest.mark.parametrize("setting", ["task.data=named_parts:numbers", "task.data=named_parts:loaded", "strategy=named_parts:Halved"])
def test_a_run_names_parts_as_its_scenario_does(own: Path, setting: str) -> None:
    """By its other name, or by none, a function would not be found again, nor would all of the modules that it was found through."""
    lines = ["from own_parts import Halved, blobs as numbers", "loaded = lambda: numbers(90)"]
    (own / "named_parts.py").write_text("\n".join(lines))
    more = ["task.partition={name: iid, nodes: 5}"] + ["task.data.count=90"] * setting.endswith("numbers")
    run = simulate(own, setting, *(more if "data" in setting else []))
    assert setting.partition("=")[2] in (run.path / "scenario.yaml").read_text()
    assert load(run.path / "scenario.yaml")[0].hash == run.info["hash"]


HALF = """
from dataclasses import dataclass
from strategies.fedavg import FedAvg
from sizes import half

@dataclass(frozen=True)
class Half(FedAvg):
    server_lr: float = half()
"""


def fedsim_run(scenario: Path, runs: Path, working: Path) -> RunFolder:
    """A run in a process of its own, so that nothing is imported already."""
    process = Forked(working, "run", scenario, "--runs", runs)
    assert process.wait() == 0, process.communicate()
    [run] = find_runs(["small"], runs)
    return run


def test_what_a_run_writes_down_runs_by_itself_from_anywhere(folder: Path) -> None:
    home, away = folder / "home", folder / "away"
    for place in (home / "data", home / "methods", away):
        place.mkdir(parents=True)
    draw = np.random.default_rng(0)
    np.savez(home / "data" / "wards.npz", x=draw.normal(size=(60, 3)), y=np.arange(60) % 3)
    (home / "methods" / "__init__.py").write_text("")
    (home / "methods" / "half.py").write_text(HALF)
    (home / "sizes.py").write_text("def half():\n    return 0.5\n")
    text = TEXT.replace("digits", "data/wards.npz").replace("fedavg", "methods.half:Half")
    first = fedsim_run(write(home, text), folder / "first", home)
    (home / "small.yaml").unlink()
    (home / "methods").rename(folder / "elsewhere")
    (home / "sizes.py").unlink()
    again = fedsim_run(first.path.resolve() / "scenario.yaml", folder / "again", away)
    assert [again.info[key] for key in ("hash", "model", "data")] == [first.info[key] for key in ("hash", "model", "data")]
    files = ["methods/__init__.py", "methods/half.py", "sizes.py"]
    for run in (first, again):
        assert sorted(str(file.relative_to(run.path / "parts")) for file in run.path.glob("parts/**/*.py")) == files


@pytest.mark.parametrize("name", ["wards", "wards.npz", "ABSOLUTE/wards.npz", "folder"])
def test_a_data_file_counts_by_its_name_in_the_hash(folder: Path, name: str) -> None:
    (folder / "folder").mkdir()
    for file in ("wards.npz", "folder/x.npz"):
        np.savez(folder / file, x=np.zeros((9, 2)), y=np.arange(9) % 3)
    [first] = load(write(folder, TEXT.replace("digits", name.replace("ABSOLUTE", str(folder)))))
    away = folder / "away"
    away.mkdir()
    [again] = load(write(away, first.resolved))
    assert again.hash == first.hash and TASKS.get(again).hash() == TASKS.get(first).hash()
    assert again.flat["task.data.file"].startswith(str(folder))
    [other] = load(write(folder, TEXT.replace("digits", "other.npz")))
    assert other.hash != first.hash and other.flat["task.data.file"] == "other.npz"


def test_two_modules_of_one_name(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "own_parts.py").write_text(OWN)
        write(folder / name, TEXT.replace("fedavg", "own_parts:Halved"))
    load(folder / "a" / "small.yaml")
    message = refused("run", "a/small.yaml", "b/small.yaml")
    first, second = (folder / name / "own_parts.py" for name in ("a", "b"))
    assert (
        f"b/small.yaml:2:11: strategy: `own_parts` was imported from {first}, not from {second}; run such scenarios separately" in message
    )
    assert message.count("error") == 1


MASKED = '''
from dataclasses import dataclass
import torch
from torch.nn.functional import cross_entropy
from fedsim import Loss
from strategies.fedavg import FedAvg

@dataclass(frozen=True)
class Restricted(Loss):
    """Cross entropy among the classes that a node has."""
    def __call__(self, outputs, targets, mask=None):
        if mask is not None:
            outputs = torch.where(mask, outputs, -1e9)
        return cross_entropy(outputs, targets, reduction="none")

@dataclass(frozen=True)
class Asking(FedAvg):
    """The same as a strategy's own loss."""
    def loss(self, task, outputs, targets, weight, mask=None):
        return (weight * task.loss(torch.where(mask, outputs, -1e9), targets)).sum()
'''


@pytest.mark.parametrize("plan", ["stacked", "looped"])
@pytest.mark.parametrize("setting", ["task.loss=masked_parts:Restricted", "strategy=masked_parts:Asking"])
def test_losses_that_take_a_mask_know_which_classes_a_node_has(folder: Path, setting: str, plan: str) -> None:
    """Node 0 has the classes 0 to 2, node 1 the classes 0 to 5: no other output's bias moves."""
    (folder / "masked_parts.py").write_text(MASKED)
    [loaded] = load(write(folder), [setting, f"engine.plan={plan}", "task.partition={name: iid, nodes: 2}", "schedule.cohort=all"])
    task = TASKS.get(loaded)
    first, second = ((task.targets < classes).nonzero()[:40, 0] for classes in (3, 6))
    fed = assemble(loaded, dataclasses.replace(task, samples=torch.cat([first, second]), starts=torch.tensor([0, 40, 80]))).fed
    before, bias = fed.state["model"][0].clone(), task.layout.slices[task.layout.names[-1]]
    fed.send(fed.idle())
    fed.merge(fed.receive())
    moved = (fed.state["model"][0] - before)[bias] != 0
    assert moved.tolist() == [True] * 6 + [False] * 4
