"""Messages stand where the mistake is: at the own part that raised, at the line that branches, at what the command line changed."""

from pathlib import Path

import pytest
from launch import call, refused, simulate, write

from fedsim.base.errors import SettingError
from fedsim.run.building import Tasks, build
from fedsim.scenario import load

OWN = '''
from dataclasses import dataclass
import torch
from torch.nn.functional import cross_entropy
from fedsim import Loss
from fedsim.schedule import Rounds
from strategies.fedavg import FedAvg

@dataclass(frozen=True)
class Weighted(Loss):
    """Cross entropy with a weight a class."""
    weights: tuple[float, ...] = (1.0,) * 10
    def __call__(self, outputs, targets):
        return cross_entropy(outputs, targets, weight=torch.tensor(self.weights), reduction="none")

@dataclass(frozen=True)
class Meaned(Loss):
    """One number for all samples."""
    def __call__(self, outputs, targets):
        return cross_entropy(outputs, targets)

@dataclass(frozen=True)
class Sized(Loss):
    """Takes batches of two, as it is tried with, and no others."""
    def __call__(self, outputs, targets):
        return outputs[:2].sum(-1) * torch.ones(2) + 0 * targets

@dataclass(frozen=True)
class Nothing(Loss):
    """No number of any model."""
    def __call__(self, outputs, targets):
        return cross_entropy(outputs, targets, reduction="none") * float("nan")

@dataclass(frozen=True)
class Counted(Loss):
    """Without a gradient."""
    def __call__(self, outputs, targets):
        return (outputs.argmax(-1) != targets).float()

class Branching(torch.nn.Linear):
    def __init__(self, input_shape: tuple, outputs: int):
        super().__init__(64, outputs)
    def forward(self, x):
        out = super().forward(x.flatten(1))
        return out if x.sum() > 0 else -out

@dataclass(frozen=True)
class Broken(Rounds):
    """Asks for what there isn't."""
    def run(self, fed):
        fed.nobody()
    def check(self, fed):
        return self.missing

@dataclass(frozen=True)
class Stepping(FedAvg):
    """Has a default of its own."""

@dataclass(frozen=True)
class Cut(FedAvg):
    """Gives the engine half of a model."""
    def local_update(self, received, memory, local):
        return {"update": local.descend(received["model"][:, :5])}, memory
'''


@pytest.fixture
def own(folder: Path) -> str:
    """A scenario's file beside `blamed_parts.py`."""
    (folder / "blamed_parts.py").write_text(OWN)
    return write(folder).name


@pytest.mark.parametrize(
    ("setting", "place", "said"),
    [
        ("task.loss={name: blamed_parts:Weighted, weights: [1, 5]}", "task.loss", "weight tensor should be defined either for all 10"),
        ("task.loss=blamed_parts:Meaned", "task.loss", "`meaned` gives float32 of shape [] for 2 samples, and one number a sample is due"),
        ("task.loss=blamed_parts:Counted", "task.loss", "`counted` does not depend on the outputs in a way that has a gradient"),
        ("task.loss=blamed_parts:Sized", "task.loss", "blamed_parts:Sized raised RuntimeError: "),
        ("strategy=blamed_parts:Cut", "strategy", "blamed_parts:Cut raised RuntimeError: "),
        (
            "schedule=blamed_parts:Broken",
            "schedule",
            "blamed_parts:Broken raised AttributeError: 'Broken' object has no attribute 'missing'",
        ),
    ],
)
def test_an_own_part_that_raises_is_told_at_its_own_key(own: str, setting: str, place: str, said: str) -> None:
    message = refused("validate", own, setting)
    assert message.startswith(f"command line: {place}: ") and said in message
    assert "blamed_parts.py:" in message or "[]" in message or "Counted" in setting


def test_a_module_that_imports_from_the_inside_is_told_where_parts_come_from(folder: Path) -> None:
    (folder / "moved_parts.py").write_text("from fedsim.loss import Loss\n")
    message = refused("validate", write(folder).name, "task.loss=moved_parts:Mine")
    assert "No module named 'fedsim.loss' (moved_parts.py:1); own parts are made of what `from fedsim import ...` gives: Inbox, " in message


def test_a_branch_on_data_is_said_with_its_line_and_looped(own: str) -> None:
    line = next(number for number, text in enumerate(OWN.splitlines(), 1) if "x.sum() > 0" in text)
    said = f"the model doesn't stack: blamed_parts.py:{line} branches on numbers of the samples or of the model"
    [loaded] = load(own, ["task.model=blamed_parts:Branching"])
    about = build(loaded, Tasks()).fed.worker.about
    assert about["plan"] == "looped" and about["plan_reason"].startswith(said)
    message = refused("run", own, "task.model=blamed_parts:Branching", "engine.plan=stacked")
    assert f"command line: engine.plan: {said}" in message and "`looped` computes one after the other" in message


def test_a_first_model_without_a_loss_blames_nobody(own: str) -> None:
    done = call("run", own, "task.loss=blamed_parts:Nothing")
    assert done.exit_code == 1
    assert "failed: the test loss of the first model is nan, before any update was merged: no learning rate mends that" in done.stdout


@pytest.mark.parametrize(
    ("line", "settings", "caret"),
    [
        ("uplink: {name: topk, fraction: 10 %}", ["uplink.count=5"], "uplink.count=5"),
        ("uplink: {name: topk, fraction: 10 %}", ["uplink={name: topk, count: 5}"], "uplink={name: topk, count: 5}"),
        ("uplink: none", ["train.epochs=2"], "train.epochs=2"),  # the file has `steps`
    ],
)
def test_the_caret_stands_where_the_command_line_changed_a_part(folder: Path, line: str, settings: list[str], caret: str) -> None:
    message = refused("run", write(folder, write(folder).read_text() + line + "\n").name, *settings)
    assert message.startswith("command line: ") and "exclude each other" in message
    assert f"   | {caret}\n" in message


def test_later_mistakes_too_are_placed_on_the_command_line(folder: Path) -> None:
    text = write(folder).read_text().replace("fedavg", "{name: fedavg, average: {name: krum, attackers: 10 %}}")
    message = refused("run", write(folder, text).name, "strategy.average.attackers=80%")
    assert message.startswith("command line: strategy.average: `krum` against 3 attackers needs 9 messages")


@pytest.mark.parametrize("setting", ["crosslink.inner.count=5", "crosslink={inner: {name: topk, count: 5}}"])
def test_what_is_written_takes_the_place_of_a_default_that_excludes_it(folder: Path, setting: str) -> None:
    [loaded] = load(write(folder), ["strategy=choco", "schedule=gossip", setting])
    codec = loaded.scenario.strategy.crosslink.inner
    assert (codec.count, codec.fraction) == (5, None)
    file = write(folder, loaded.resolved, "again.yaml")  # as it is written down, too
    assert load(file)[0].scenario.strategy.crosslink == loaded.scenario.strategy.crosslink
    [usual] = load(write(folder), ["strategy=choco", "schedule=gossip"])
    assert usual.scenario.strategy.crosslink.inner.fraction == 0.05


def test_a_misspelt_command_is_answered_once() -> None:
    assert call("rnu").stderr.count("Did you mean 'run'?") == 1


def test_an_own_part_within_another_is_found(own: str) -> None:
    [loaded] = load(own, ["strategy=blamed_parts:Stepping", "task.loss=blamed_parts:Sized"])
    with pytest.raises(SettingError, match="Sized raised"):
        build(loaded, Tasks())
    assert simulate(Path.cwd(), "task.loss=blamed_parts:Weighted").info["reason"] == "4 rounds"
