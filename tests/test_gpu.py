"""What a GPU must do, for the day one is there (`make gpu`); the same on the emulated device (`make test-device`)."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from emulated import emulated
from test_plans import IMAGES, arguments, task_of
from tools import classification, federation, run

from fedsim.bench import gpu
from fedsim.gradients.graphs import Compiled, CudaGraphs
from fedsim.gradients.looped import Looped
from fedsim.gradients.plan import Plan
from fedsim.gradients.stacked import Stacked
from fedsim.method.train import Train
from fedsim.models import Cnn, CnnGn, LeafCnn, Logistic, Mlp, Model
from fedsim.run.building import Tasks, build
from fedsim.run.resume import reload, reopen
from fedsim.scenario import load
from fedsim.schedule import Rounds
from fedsim.settings.values import Count
from strategies.fedavg import FedAvg

MODELS: list[tuple[Model, tuple[int, ...]]] = [
    *((Logistic(), (6,)), (Mlp(hidden=(8, 5)), (6,)), (LeafCnn(), IMAGES), (Cnn(), IMAGES), (CnnGn(), (3, 16, 16)))
]
STRATEGY = FedAvg(schedule=Rounds(Count(5)), train=Train(epochs=2, batch=5))
PLANS: dict[str, type[Plan]] = {"looped": Looped, "stacked": Stacked, "cuda_graphs": CudaGraphs, "compiled": Compiled}
TEXT = (
    "task: {data: digits, partition: {name: dirichlet, alpha: 1.0, nodes: 6}, model: {name: mlp, hidden: [16]}}\n"
    "strategy: scaffold\ntrain: {epochs: 1, batch: 8, lr: 0.05}\nschedule: {name: rounds, cohort: 4}\n"
    "evaluate: {every: 2 rounds}\ncheckpoint: {every: 3 rounds}\nstop: {rounds: 6}\ntrack: none\n"
)


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu), pytest.param("emulated", marks=pytest.mark.device)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cuda":
        yield "cuda:0"
        return
    with emulated():
        yield "emulated:0"


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("model", "shape"), MODELS, ids=lambda value: getattr(value, "name", ""))
def test_every_plan_agrees_with_the_cpu(model: Model, shape: tuple[int, ...], plan: str, device: str) -> None:
    if plan == "compiled" and device.startswith("emulated"):
        pytest.skip("TorchInductor does not know the emulated device")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        task = task_of(model, shape)
    x, samples = arguments(task, 3)
    expected = Looped(task, STRATEGY.loss, 3).gradient(x, samples)
    with torch.no_grad():
        there = task.move(device)
        more = {"exact": False} if plan == "stacked" else {}
        found = PLANS[plan](there, STRATEGY.loss, 4, **more)  # type: ignore[arg-type]
        given = type(samples)(*(one.to(device) for one in samples.flat()))
        for _ in range(2):  # the second after a forced collection
            torch.testing.assert_close(found.gradient(x.to(device), given).cpu(), expected, rtol=1e-4, atol=1e-5)
            there.known.clear()
            gc.collect()


@pytest.mark.parametrize("plan", ["looped", "stacked", "cuda_graphs"])
def test_a_round_is_the_cpu_s_and_the_same_bits_again(plan: str, device: str) -> None:
    task = classification([3, 40, 7, 1, 22, 5])
    expected = run(task, STRATEGY, 3).state["model"]
    first, again = (run(task, STRATEGY, 3, device=device, plan=plan).state["model"].cpu() for _ in range(2))
    assert torch.equal(first, again)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5)


def test_resumed_is_uninterrupted(device: str, tmp_path: Path) -> None:
    file = tmp_path / "case.yaml"
    file.write_text(TEXT)
    [loaded] = load(file, [f"engine.device={device}"])
    whole = build(loaded, Tasks()).execute(tmp_path / "whole")
    cut = build(loaded, Tasks())
    cut.until = 4  # it ends after a checkpoint, as if by hand
    cut.execute(tmp_path / "cut")
    again = build(reload(tmp_path / "cut", [], {}), Tasks())
    reopen(again, tmp_path / "cut")
    assert again.execute(tmp_path / "cut")["model"] == whole["model"]


def test_a_round_never_waits(device: str) -> None:
    api = torch.get_device_module(device)
    fed = federation(classification([3, 40, 7, 1, 22, 5]), STRATEGY, 12, device=device)
    warm = fed.watch.running  # type: ignore[method-assign]

    def running(one: object) -> bool:
        if fed.round == 3:  # what is recorded is recorded by now
            api.set_sync_debug_mode("error")
        return warm(fed)

    fed.watch.running = running  # type: ignore[method-assign]
    try:
        fed.run()
    finally:
        api.set_sync_debug_mode("default")
    assert fed.round == 12


def test_a_benchmark_is_measured(device: str) -> None:
    work = gpu.OnGpu("logistic", 4, 1)
    figures = gpu.measured("logistic", work, 1, device, gpu.limits(torch.device(device), 64))
    assert [figure.name.split(", ")[1] for figure in figures] == ["plain loop", "bare loop", "GB/s", "GFLOP/s"]
    assert all(figure.ours > 0 and figure.other > 0 for figure in figures)
