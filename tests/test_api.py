"""fedsim from Python: scenarios as dicts, own classes as objects, and what runs left as frames and modules."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from launch import TEXT, call, write
from torch import Tensor, nn

import fedsim
from fedsim.api.trusted import modules
from fedsim.base.errors import FedsimError, RunError, ScenarioError
from fedsim.base.rows import Rows, model_hash
from fedsim.codecs import TopK
from fedsim.method.inbox import Inbox
from fedsim.scenario import load
from fedsim.settings.values import Share
from strategies.fedavg import FedAvg

SCENARIO: dict[str, Any] = yaml.safe_load(TEXT)


@dataclass(frozen=True)
class Mine(FedAvg):
    """A method of this module's own."""

    part: float = 0.5


@dataclass(frozen=True)
class Lost(FedAvg):
    """A method that fails, though not where it is tried before the run."""

    merges: ClassVar[list[int]] = []

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        self.merges.append(1)
        if len(self.merges) > 3:
            raise ValueError("lost it")
        return super().merge(state, inbox)


class Net(nn.Module):
    def __init__(self, outputs: int, width: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, outputs))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


def broken() -> dict[str, Any]:
    raise ValueError("no wards")


@pytest.fixture(autouse=True)
def _handed_over() -> Iterator[None]:
    """Whose code may run is what a test hands over."""
    yield
    modules.clear()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> "fedsim.Results":
    folder = tmp_path_factory.mktemp("api")
    return fedsim.load(SCENARIO, strategy=["fedavg", "fedprox"], seed=range(2)).run(folder / "runs", quiet=True)


def test_a_dict_is_the_scenario_that_a_file_is(folder: Path) -> None:
    [of_file], [of_dict] = load(write(folder)), fedsim.load(SCENARIO).runs
    assert of_dict.hash == of_file.hash and of_dict.flat | {"name": "small"} == of_file.flat
    assert fedsim.load(write(folder)).runs[0].hash == of_file.hash
    assert fedsim.load({"extends": "small.yaml", "seed": 3}).runs[0].seed == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": {"lr": 0.3}}, ["train.lr=0.3"]),
        ({"train.lr": np.float32(0.5)}, ["train.lr=0.5"]),
        ({"stop": {"rounds": np.int64(7)}, "schedule.deadline": None}, ["stop.rounds=7"]),
        ({"strategy": {"name": "fedprox", "pull": 1e-5}}, ["strategy={name: fedprox, pull: 1e-5}"]),
        ({"evaluate.metrics": ["loss"]}, ["evaluate.metrics=[loss]"]),
        (
            {"uplink": TopK(fraction=Share(0.01)), "task.model": {"name": "mlp", "hidden": [8]}},
            ["uplink={name: topk, fraction: 1 %}", "task.model={name: mlp, hidden: [8]}"],
        ),
        ({"strategy": FedAvg(server_lr=0.5)}, ["strategy={name: fedavg, server_lr: 0.5}"]),
        ({"task.model": {"name": "mlp", "hidden": (4, 4)}}, ["task.model={name: mlp, hidden: [4, 4]}"]),
        ({"task.model": {"name": "logistic", "bias": False}}, ["task.model={name: logistic, bias: false}"]),
    ],
)
def test_changes_are_what_they_are_on_the_command_line(folder: Path, changes: dict[str, Any], words: list[str]) -> None:
    [changed], [written] = fedsim.load(SCENARIO, **changes).runs, load(write(folder), words)
    assert changed.flat | {"name": "small"} == written.flat


def test_lists_for_one_value_are_swept(folder: Path) -> None:
    experiment = fedsim.load(SCENARIO, **{"train.lr": [0.1, 0.3]}, seed=range(2))
    assert [run.label for run in experiment.runs] == ["lr 0.1 seed 0", "lr 0.1 seed 1", "lr 0.3 seed 0", "lr 0.3 seed 1"]
    assert repr(experiment).startswith("<fedsim experiment scenario: lr 0.1 seed 0, ") and len(experiment) == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stratgy": "fedavg"}, "load: unknown key `stratgy`; did you mean `strategy`?"),
        ({"train.lr": object()}, "train.lr: a builtins.object can't stand in a scenario"),
        ({"task.model": Net(10)}, "task.model: a test_api.Net can't stand in a scenario; hand over its class, settings beside it"),
        ({"task.data": lambda: {}}, "is defined within something else"),
        ({"strategy": replace(FedAvg(), train=replace(FedAvg().train, lr=2.0))}, "strategy.train: `train` stands beside `strategy`"),
        ({"task.model": {"name": Net, "widht": 2}}, "unknown key `task.model.widht`; did you mean `task.model.width`?"),
        ({"strategy": Net}, "strategy: `test_api:Net` can't be a strategy"),
    ],
)
def test_what_can_not_stand_in_a_scenario(folder: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError) as error:
        fedsim.load(SCENARIO, **changes)
    assert said in str(error.value) and not Path("runs").exists() and len(fedsim.runs()) == 0


def test_own_classes_are_handed_over_and_kept_with_the_run(folder: Path) -> None:
    """The copy of their module makes the folder run by itself."""
    [done] = fedsim.load(SCENARIO, strategy=Mine(part=0.25), task={"model": {"name": Net, "width": 2}}).run(quiet=True)
    assert (done.settings["strategy.name"], done.settings["strategy.part"]) == ("test_api:Mine", "0.25")
    assert (done.path / "parts/test_api.py").read_text() == Path(__file__).read_text()
    assert isinstance(done.model, Net) and done.model.layers[1].weight.shape == (2, 64)
    assert call("resume", "scenario", "stop.rounds=5").exit_code == 0
    assert fedsim.runs("scenario")[0].final["round"] == 5 and fedsim.runs()[0].path == done.path


def test_a_thread_may_run_too(folder: Path) -> None:
    with ThreadPoolExecutor(1) as others:
        [done] = others.submit(fedsim.load({**SCENARIO, "stop": {"rounds": 1}}).run, quiet=True).result()
    assert done.status == "finished" and done.label == "seed 0"


def test_what_fails_says_where_the_others_are(folder: Path) -> None:
    with pytest.raises(FedsimError, match="no wards"):
        fedsim.load(SCENARIO, **{"task.data": broken}).run(quiet=True)
    with pytest.raises(RunError, match=r"1 of 2 runs failed \(.*Lost seed 0: .*lost it.*\); all are in fedsim.runs\('runs/scenario/"):
        fedsim.load(SCENARIO, strategy=["fedavg", Lost]).run(quiet=True)
    assert [run.status for run in fedsim.runs("scenario")] == ["finished", "failed"]


def test_frames_are_what_the_folder_has(runs: "fedsim.Results") -> None:
    assert [run.label for run in runs] == [f"strategy {name} seed {seed}" for name in ("fedavg", "fedprox") for seed in (0, 1)]
    one = runs[0]
    assert one.metrics["test/accuracy"].tolist() == one.folder.column("test/accuracy").tolist()
    assert len(one.events) == len(one.folder.columns["kind"]) and one.events["kind"].iloc[0] == "evaluate"
    assert one.events["time"].iloc[-1] == one.final["time/seconds"]
    together = runs.metrics
    assert list(together.columns[:2]) == ["variant", "seed"] and len(together) == sum(len(run.metrics) for run in runs)
    assert runs["strategy fedprox"].events["variant"].unique().tolist() == ["strategy fedprox"] and len(runs[1:3]) == 2
    assert "strategy fedavg seed 0" in runs._repr_html_() and "finished" in repr(one)
    with pytest.raises(FedsimError, match="no variant `strategy fedporx`; did you mean `strategy fedprox`"):
        runs["strategy fedporx"]


def test_a_comparison_is_a_frame(runs: "fedsim.Results") -> None:
    frame = fedsim.compare(runs, runs[0], runs[1].path, baseline="strategy=fedprox")
    assert frame.index.tolist() == ["strategy fedavg", "strategy fedprox"] and frame["finished"].tolist() == [2, 2]
    assert frame["baseline"].tolist() == ["strategy fedprox", ""]
    assert frame.loc["strategy fedavg", "final_mean"] == pytest.approx(np.mean([run.final["test/accuracy"] for run in runs[:2]]))
    assert {"notes", "sentences", "differing", "cheapest"} <= set(frame.attrs)
    assert runs.compare(where=["strategy=fedavg"]).index.tolist() == ["strategy fedavg"]


def test_a_model_has_the_bits_of_the_run(runs: "fedsim.Results") -> None:
    rows = torch.cat([one.detach().flatten() for one in runs[0].model.parameters()])
    assert model_hash(rows[None], torch.zeros(1, 0)) == runs[0].info["model"]
    with pytest.raises(FedsimError, match="4 runs have a model each"):
        runs.model  # noqa: B018
    (runs[1].path / "model.safetensors").write_bytes(b"no model")
    with pytest.raises(FedsimError, match=r"model\.safetensors: broken, or of another model"):
        runs[1].model  # noqa: B018


def test_peers_have_a_model_each(folder: Path) -> None:
    [done] = fedsim.load(SCENARIO, strategy="dsgd", schedule={"name": "gossip", "topology": "ring"}, world=None).run(quiet=True)
    assert len(done.models) == 8
    with pytest.raises(FedsimError, match="its 8 peers have a model each"):
        done.model  # noqa: B018
    rows = torch.stack([torch.cat([one.detach().flatten() for one in model.parameters()]) for model in done.models])
    assert model_hash(rows, torch.zeros(8, 0)) == done.info["model"]


@pytest.mark.pictures
def test_pictures_are_shown_as_png(runs: "fedsim.Results") -> None:
    picture = runs.plot("bytes", "loss")
    assert picture._repr_png_().startswith(b"\x89PNG") and picture.path.name == "loss-bytes.png"
    assert picture.caption.startswith("line: mean of 2 seeds")
