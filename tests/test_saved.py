"""Runs that begin with saved numbers: of a file, or of an earlier run, for any model."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from launch import TASKS, TEXT, call, refused, resumed, same, simulate, write

import fedsim
from fedsim.run.building import build
from fedsim.run.folders import RunFolder
from fedsim.run.resume import reload
from fedsim.scenario import load

QUICK = ("engine.plan=looped", "train.steps=1", "evaluate.every=1 rounds")
BATCHNORM = TEXT.replace("model: logistic", "model: {name: resnet18, norm: batch, width: 1}").replace("cohort: 4", "cohort: 1")


def first(folder: Path, *settings: str, text: str = TEXT) -> torch.Tensor:
    """The first model of such a scenario."""
    [loaded] = load(write(folder, text, "next.yaml"), settings)
    return build(loaded, TASKS).fed.task.init


def test_a_run_begins_where_another_ended(folder: Path) -> None:
    """By its folder, its model's file, and its name under runs/; the first evaluation is the other's last."""
    run = simulate(folder, *QUICK, into="runs/before/1")
    (folder / "runs" / "before" / "latest").symlink_to("1")
    names = ("runs/before/1", str(run.path), str(run.path / "model.safetensors"), "before", "before/1")
    models = [first(folder, f"task.weights={name}") for name in names]
    last = torch.cat([one.detach().flatten() for one in fedsim.runs(run.path)[0].model.parameters()])
    assert all(torch.equal(model, last) for model in models)
    after = simulate(folder, *QUICK, "task.weights=before", "seed=1", into="after")
    assert after.metrics[0]["round"] == 0 and after.metrics[0]["test/accuracy"] == run.metrics[-1]["test/accuracy"]


def test_running_statistics_are_begun_with_too(folder: Path) -> None:
    run = simulate(folder, *QUICK, "stop.rounds=1", text=BATCHNORM)
    [loaded] = load(write(folder, BATCHNORM), [*QUICK, f"task.weights={run.path}"])
    found, task = safetensors.torch.load_file(run.path / "model.safetensors"), build(loaded, TASKS).fed.task
    assert task.buffers.size and all(torch.equal(view, found[name]) for name, view in task.buffers.views(task.first_buffers).items())


def test_a_state_dict_of_plain_pytorch_will_do_in_its_own_precision(folder: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    safetensors.torch.save_file({name: value.half() for name, value in module.state_dict().items()}, folder / "mine.safetensors")
    half = torch.cat([one.detach().half().float().flatten() for one in module.parameters()])
    assert torch.equal(first(folder, "task.weights=mine.safetensors"), half)


def test_it_resumes_wherever_the_scenario_lies_and_only_on_the_same_numbers(folder: Path) -> None:
    before = simulate(folder, *QUICK, into="before")
    settings = (*QUICK, "task.weights=before/model.safetensors")
    long = simulate(folder, *settings, "stop.rounds=6", into="long")
    run = simulate(folder, *settings, into="elsewhere/short")
    same(long, resumed(run.path, "stop.rounds=6"))
    file = before.path / "model.safetensors"
    safetensors.torch.save_file({name: value + 1 for name, value in safetensors.torch.load_file(file).items()}, file)
    result = call("resume", run.path, "stop.rounds=8")
    assert result.exit_code == 2 and "the first model's hash was" in " ".join(result.stderr.split())
    assert RunFolder(run.path).info["final"]["round"] == 6 and reload(run.path).hash == reload(long.path).hash


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "no model `nowhere`: a safetensors file, or a run's folder or name"),
        ("small.yaml", "`small.yaml` can't be read"),
        ("code.pt", "`safetensors.torch.save_file(module.state_dict(), FILE)`"),
        ("other.safetensors", "`1.weight` of shape [10, 64] is needed, and other.safetensors has it in shape [64, 10]"),
        ("less.safetensors", "`1.bias` of shape [10] is needed, and less.safetensors has it not (it has 1.weight ...)"),
        ("more.safetensors", "more.safetensors holds `head`, which the model has not"),
        ("swept", "it is a sweep: swept/a"),
    ],
)
def test_what_is_no_such_model_is_refused(folder: Path, name: str, said: str) -> None:
    (folder / "code.pt").write_bytes(b"\x80\x04")
    whole = {"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}
    safetensors.torch.save_file(whole | {"1.weight": torch.zeros(64, 10)}, folder / "other.safetensors")
    safetensors.torch.save_file({"1.weight": whole["1.weight"]}, folder / "less.safetensors")
    safetensors.torch.save_file(whole | {"head": torch.zeros(1)}, folder / "more.safetensors")
    (folder / "swept" / "a").mkdir(parents=True)
    safetensors.torch.save_file(whole, folder / "swept" / "a" / "model.safetensors")
    (folder / "swept" / "sweep.json").write_text("{}")
    error = " ".join(refused("run", write(folder), f"task.weights={name}").split())
    assert "task.weights" in error and said in error
