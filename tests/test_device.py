"""The path of a GPU on an emulated device: what it costs the host, recordings, several devices, memory, and what is refused."""

import gc
from typing import Any

import numpy as np
import pytest
import torch
from emulated import CaptureError, Counts, MixedDevices, emulated, without_onednn
from test_plans import IMAGES, arguments, task_of
from tools import classification, federation, run
from torch import Tensor, nn

from fedsim.base.errors import RunError, SettingError
from fedsim.base.keys import fold, normal
from fedsim.base.rows import Layout
from fedsim.codecs.lowrank import PowerSgd
from fedsim.codecs.quantised import Qsgd
from fedsim.codecs.sketches import CountSketch
from fedsim.codecs.sparse import RandK
from fedsim.engines.local import LocalEngine
from fedsim.federation.link import Link
from fedsim.gradients.graphs import CudaGraphs, sizes
from fedsim.gradients.looped import Looped
from fedsim.gradients.stacked import Stacked
from fedsim.method.local import Ascent, Local
from fedsim.method.optimizers import Adagrad, AdamW
from fedsim.method.train import Train
from fedsim.models import Cnn, Lenet, Logistic, Mlp, Model
from fedsim.models.pure import pure, statistics
from fedsim.privacy.gaussian import Gaussian
from fedsim.schedule import Rounds
from fedsim.settings.values import Constant, Count, Exponential
from fedsim.task.task import Task
from strategies.fedavg import FedAvg

COUNTS = [3, 40, 7, 1, 22, 5]
AVERAGE = FedAvg(schedule=Rounds(Count(5)))


# The device itself is as strict as a GPU


def test_the_emulated_device_refuses_what_a_gpu_refuses() -> None:
    with emulated(2) as machine:
        x, other = torch.ones(3, device="emulated:0"), torch.ones(3, device="emulated:1")
        for wrong in (torch.ones(3), other):
            with pytest.raises(MixedDevices, match="on the same device"):
                x + wrong
        assert (x * torch.tensor(2.0)).tolist() == [2, 2, 2]  # a number of the host may stand beside
        with pytest.raises(TypeError, match="to host memory first"):
            np.asarray(x)
        before = machine.total()
        late = x.to("cpu", non_blocking=True)
        assert late.isnan().all() and machine.total().syncs == before.syncs  # nobody has waited
        assert float(x.sum()) == 3 and late.tolist() == [1, 1, 1]
        assert machine.total().syncs == before.syncs + 1


def test_an_emulated_recording_is_as_strict_as_one_of_a_gpu() -> None:
    with emulated(2), torch.no_grad():
        api = torch.get_device_module("emulated")
        x, y = torch.ones(2, device="emulated:0"), torch.zeros(2, device="emulated:0")

        def recorded(work: Any, device: str = "emulated:0") -> Any:
            graph = api.CUDAGraph()
            with api.graph(graph, stream=api.Stream(device)):
                work()
            return graph

        graph = recorded(lambda: y.add_(x * 2))
        assert y.tolist() == [0, 0]  # nothing is done while a stream is capturing
        x.fill_(5)
        graph.replay()
        graph.replay()
        assert y.tolist() == [20, 20]
        with pytest.raises(CaptureError, match="while a stream is capturing"):
            recorded(lambda: float(x.sum()))
        with pytest.raises(CaptureError, match="while a stream of emulated:1 is capturing"):
            recorded(lambda: x + 1, "emulated:1")
        held = [torch.ones(2, device="emulated:0")]
        graph = recorded(lambda: y.add_(held[0]))
        held.clear()
        with pytest.raises(CaptureError, match="nobody holds"):
            graph.replay()


# What it costs the host


def rounds_on(task: Task, steps: int, plan: str) -> Counts:
    """Of the median round of FedAvg, of jobs of so many steps."""
    with emulated() as machine:
        run(task, FedAvg(schedule=Rounds(Count(4)), train=Train(steps=steps, batch=4)), 4, device="emulated", plan=plan)
        return machine.steady()


MODELS = [  # launches of a step that is stacked, and kernels of one that is recorded
    pytest.param(Logistic(), (6,), 8, 13, id="logistic"),
    pytest.param(Mlp(hidden=(8,)), (6,), 14, 20, id="mlp", marks=pytest.mark.device),
    pytest.param(Cnn(), IMAGES, 30, 36, id="cnn", marks=pytest.mark.device),
]


@pytest.mark.parametrize(("part", "shape", "launches", "kernels"), MODELS)
def test_a_round_waits_for_nothing_and_a_step_launches_little(part: Model, shape: Any, launches: int, kernels: int) -> None:
    task = task_of(part, shape)
    plain = rounds_on(task, 8, "stacked") - rounds_on(task, 4, "stacked")
    assert plain.launches / 4 <= launches and plain.syncs == 0
    few, more = (rounds_on(task, steps, "cuda_graphs") for steps in (4, 8))
    assert few.syncs == more.syncs == 0 and (few.replays, more.replays) == (1, 2)  # four steps a replay
    assert (more - few).launches == 1 and (more - few).kernels / 4 <= kernels
    assert more.pageable == 0 and more.d2h == 0


@pytest.mark.parametrize(
    ("part", "shape"), [pytest.param(Mlp(hidden=(8,)), (6,), id="mlp"), pytest.param(Cnn(), IMAGES, id="cnn", marks=pytest.mark.device)]
)
def test_products_in_bfloat16_are_the_cpus(part: Model, shape: Any) -> None:
    task, strategy = task_of(part, shape), FedAvg(schedule=Rounds(Count(4)), train=Train(steps=3, batch=4))
    plain = run(task, strategy, 2, plan="stacked").state["model"]
    for plan, here in (("stacked", "stacked"), ("cuda_graphs", "stacked"), ("looped", "looped")):
        with without_onednn():  # as it is there
            low = run(task, strategy, 2, plan=here, precision="bfloat16").state["model"]
        with emulated():
            there = run(task, strategy, 2, device="emulated", plan=plan, precision="bfloat16").state["model"].cpu()
        assert there.dtype == torch.float32 and float((there - low).norm()) < 0.1 * float((plain - low).norm())


def test_nothing_grows_with_the_nodes() -> None:
    strategy = FedAvg(schedule=Rounds(Count(4)), train=Train(steps=2, batch=4))
    few, many = (classification([8] * count) for count in (6, 600))
    found = []
    for task in (few, many):
        with emulated() as machine:
            run(task, strategy, 4, device="emulated", plan="cuda_graphs")
            found.append(machine.steady())
    assert (found[0].launches, found[0].syncs, found[0].h2d_bytes) == (found[1].launches, found[1].syncs, found[1].h2d_bytes)


def test_clipped_gradients_of_all_samples_of_a_step_are_one_replay() -> None:
    task, train = classification([8] * 4), Train(steps=3, batch=8)
    strategy = FedAvg(schedule=Rounds(Count(2)), train=train, privacy=Gaussian(0.5, 0.0, unit="sample"))
    expected = run(task, strategy, 4).state["model"]
    with emulated() as machine:
        found = run(task, strategy, 4, device="emulated", plan="cuda_graphs").state["model"]
        assert (machine.steady().replays, machine.steady().syncs) == (3, 0)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-6)


def test_a_model_that_diverges_is_named_though_it_is_looked_at_late() -> None:
    strategy = FedAvg(schedule=Rounds(Count(6)), train=Train(steps=3, batch=4, lr=Constant(3e38)))
    task = classification(COUNTS)
    task.init = task.init * 1e10
    with emulated():
        fed = federation(task, strategy, 40, device="emulated", plan="stacked")
        with pytest.raises(RunError, match=r"diverged in round 1: the model is not finite after the updates of clients 0, 1, 2, 3, 4, 5"):
            fed.run()
        assert fed.round <= 16


# Recordings


class Dropping(nn.Sequential):
    """With dropout and running statistics."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def local_of(task: Task, plan: Any, train: Train, device: str) -> Local:
    """Jobs of all nodes, by falling steps."""
    steps = train.plan(task.counts.cpu(), train.batch_size(task))[0]
    at = torch.argsort(steps, descending=True, stable=True)
    buffers = task.first_buffers.expand(len(at), -1).clone() if task.buffers.size else None
    return Local(plan, task, train, at.to(device), fold(0, "job", at).to(device), np.arange(len(at)), buffers)


DESCENTS: list[dict[str, Any]] = [
    {},
    {"pull": 0.3, "drift": True},
    {"ascent": Ascent(0.2)},
    {"ascent": Ascent(0.3, mix=0.6), "drift": True},
    {"scale": True, "pull": 0.3},
]
TRAINS = [
    Train(epochs=2, batch=5),
    Train(steps=6, batch=5, lr=Exponential(start=0.1, factor=0.9), weight_decay=0.02),
    Train(epochs=2, batch=5, momentum=0.9, clip=0.5),
    Train(epochs=2, batch=5, optimizer=AdamW(eps=1e-3), lr=Exponential(start=0.1, factor=0.9)),
    Train(epochs=2, batch=5, optimizer=Adagrad(eps=1e-3), weight_decay=0.02),
]


def descended(task: Task, plan: Any, train: Train, how: dict[str, Any], device: str = "cpu") -> Tensor:
    """[6, d + b]: models and running statistics after all steps, twice in a row with a forced collection between."""
    d = task.layout.size
    drift, scale, anchor = (0.1 * normal(fold(seed, torch.arange(6)), d).to(device) for seed in (1, 2, 3))
    given = {"anchor": anchor, "pull": how.get("pull", 0.0), "ascent": how.get("ascent")}
    given |= {"drift": drift} if "drift" in how else {}
    given |= {"scale": scale} if "scale" in how else {}
    out = []
    for _ in range(2):
        local = local_of(task, plan, train, device)
        with torch.no_grad():
            out.append(local.descend(task.init.expand(6, -1), **given))
        out += [] if local.buffers is None else [local.buffers]
        gc.collect()
    return torch.cat(out, 1).cpu()


QUICK = {(0, 1), (1, 3), (2, 4), (3, 1)}
STEPS = [
    pytest.param(train, how, id=f"{' '.join(how) or 'alone'} {at}", marks=[] if (at, place) in QUICK else pytest.mark.device)
    for at, train in enumerate(TRAINS)
    for place, how in enumerate(DESCENTS)
]


@pytest.mark.parametrize(("train", "how"), STEPS)
def test_recorded_steps_are_looped_and_stacked_ones(train: Train, how: dict[str, Any]) -> None:
    task = classification(COUNTS)
    expected = descended(task, Looped(task, AVERAGE.loss, 7), train, how)
    with emulated():
        there = task.move("emulated:0")
        stacked = descended(there, Stacked(there, AVERAGE.loss, 7, exact=False), train, how, "emulated:0")
        recorded = descended(there, CudaGraphs(there, AVERAGE.loss, 7), train, how, "emulated:0")
    torch.testing.assert_close(stacked, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(recorded, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.device
def test_recorded_steps_keep_dropout_and_running_statistics() -> None:
    task = classification(COUNTS, model=pure(Dropping()))
    task.buffers, task.first_buffers = statistics(task.model)
    expected = descended(task, Looped(task, AVERAGE.loss, 6), TRAINS[0], {"ascent": Ascent(0.2)})
    with emulated():
        there = task.move("emulated:0")
        plan = CudaGraphs(there, AVERAGE.loss, 6)
        found = descended(there, plan, TRAINS[0], {"ascent": Ascent(0.2)}, "emulated:0")
        assert {kind[-1] for kind in plan.steps.replays} > {1, 6}  # of few rows and of all
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(found[:, -task.buffers.size :], task.first_buffers.expand(6, -1))


HELD = [
    pytest.param("emulated:0", Mlp(hidden=(8,)), (6,), id="mlp"),
    pytest.param("emulated:1", Mlp(hidden=(8,)), (6,), id="mlp on the second"),
    pytest.param("emulated:0", Cnn(), IMAGES, id="cnn", marks=pytest.mark.device),
    pytest.param("emulated:0", Lenet(), (1, 28, 28), id="lenet", marks=pytest.mark.device),
]


@pytest.mark.parametrize(("device", "part", "shape"), HELD)
def test_a_recorded_gradient_holds_what_it_reads(device: str, part: Model, shape: Any) -> None:
    task = task_of(part, shape)
    x, samples = arguments(task, 3)
    expected = Looped(task, AVERAGE.loss, 3).gradient(x, samples)
    with emulated(2), torch.no_grad():
        there = task.move(device)
        plan = CudaGraphs(there, AVERAGE.loss, 4)
        given = type(samples)(*(one.to(device) for one in samples.flat()))
        for _ in range(2):
            found = plan.gradient(x.to(device), given)
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-6)
            there.known.clear()
            gc.collect()


def test_few_rows_have_shapes_of_their_own() -> None:
    assert sizes(100) == [13, 25, 50, 100] and sizes(3) == [1, 2, 3]


# Several devices


def test_results_do_not_depend_on_how_many_devices_share_a_round() -> None:
    task, strategy = classification(COUNTS), FedAvg(schedule=Rounds(Count(6)))
    expected = run(task, strategy, 3).state["model"]
    devices = {"cpu,cpu": expected}
    with emulated(3) as machine:
        for device in ("emulated:1", "emulated:0,emulated:1", "emulated:2,emulated:0,emulated:1"):
            fed = run(task, strategy, 3, device=device, chunk=2)
            devices[device] = fed.state["model"].cpu()
            assert str(fed.state["model"].device) == device.split(",")[0] and fed.worker.about["device"] == device
            fed.worker.close()
        assert all(machine.peak[at] > 0 for at in range(3))
        del fed
    fed = run(task, strategy, 3, device="cpu,cpu")
    fed.worker.close()
    assert torch.equal(fed.state["model"], expected)
    first = devices["emulated:1"]
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(found, first) for name, found in devices.items() if name.startswith("emulated"))


def test_an_error_on_one_of_several_devices_is_the_error_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = federation(classification(COUNTS), FedAvg(schedule=Rounds(Count(6))), 2, device="cpu,cpu")
    monkeypatch.setattr("fedsim.method.local.Local.descend", lambda *_: 1 / 0)
    with pytest.raises(RunError, match=r"round 1: the work of clients .* raised ZeroDivisionError"):
        fed.run()
    fed.worker.close()


# Arithmetic, memory, codecs


def test_arithmetic_is_set_and_recorded() -> None:
    task = classification(COUNTS)
    with emulated():
        about = federation(task, AVERAGE, device="emulated").worker.about
        assert (about["products"], about["deterministic"], about["plan"]) == ("ieee", True, "cuda_graphs")
        assert torch.backends.cudnn.conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "ieee"  # type: ignore[attr-defined]
        assert torch.are_deterministic_algorithms_enabled()
        assert federation(task, AVERAGE, device="emulated", precision="tf32").worker.about["products"] == "tf32"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert not torch.are_deterministic_algorithms_enabled()
    assert "products" not in federation(task, AVERAGE).worker.about


def test_memory_is_what_the_device_has_free() -> None:
    task = task_of(Mlp(hidden=(64,)), (6,))
    with emulated(memory=1 << 30):
        assert federation(task, AVERAGE, device="emulated").worker.chunk == 4  # all that work at once
    with emulated(memory=20_000), pytest.raises(SettingError, match=r"engine.memory: .* is too small: one model of 643 parameters"):
        LocalEngine(device="emulated").start(task, FedAvg(train=Train(batch=32)), 0)
    with emulated(memory=100), pytest.raises(SettingError, match=r"engine.device: the task does not fit: emulated out of memory"):
        LocalEngine(device="emulated").start(task, AVERAGE, 0)


@pytest.mark.parametrize("codec", [RandK(fraction=0.5), Qsgd(), CountSketch(fraction=0.5), PowerSgd(rank=1)], ids=lambda codec: codec.name)
def test_codecs_draw_where_the_parts_are(codec: Any) -> None:
    parts, layout = {"update": normal(fold(0, torch.arange(2)), 24)}, Layout({"w": (4, 6)})
    link = Link(codec.fitted(layout), "uplink", 0, 2)
    expected = link.sizes(parts)
    came = link.carry(parts, np.arange(2), 1)["update"]
    with emulated():
        there, link = {"update": parts["update"].to("emulated")}, Link(codec.fitted(layout), "uplink", 0, 2)
        assert link.sizes(there) == expected
        torch.testing.assert_close(link.carry(there, np.arange(2), 1)["update"].cpu(), came, rtol=1e-5, atol=1e-6)


# What is refused


class Waits(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.0 if x.sum().item() > 0 else 0.5)


class OnTheHost(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.ones(3)


def test_what_can_t_be_is_refused() -> None:
    task = classification(COUNTS)
    with emulated(2):
        for device, what in {
            "emulated:9": "`emulated:9` can't be used here: this machine has `emulated:0` to `emulated:1`",
            "toaster": "`toaster` names no device; `cpu`, `cuda` and `cuda:1` do",
            "cpu,emulated": "`cpu,emulated` are of several kinds",
        }.items():
            with pytest.raises(SettingError, match="engine.device: " + what.replace("(", r"\(")):
                LocalEngine(device=device).start(task, AVERAGE, 0)
        with pytest.raises(SettingError, match=r"engine.processes: a GPU is used by one process"):
            LocalEngine(device="emulated", processes=2).start(task, AVERAGE, 0)
        wrong = classification(COUNTS, model=OnTheHost(6, 3))
        with pytest.raises(SettingError, match=r"task.model: \w+.py:\d+ makes a tensor on the CPU.*`device=x.device`"):
            LocalEngine(device="emulated").start(wrong, AVERAGE, 0)
        waits = classification(COUNTS, model=Waits(6, 3))
        with pytest.raises(SettingError, match=r"engine.plan: the model doesn't stack: test_device.py:\d+ branches on numbers"):
            LocalEngine(device="emulated", plan="cuda_graphs").start(waits, AVERAGE, 0)
        about = LocalEngine(device="emulated").start(waits, AVERAGE, 0).about
        assert about["plan"] == "looped" and "test_device.py:" in about["plan_reason"]
    with pytest.raises(SettingError, match=r"engine.precision: `tf32` needs a CUDA device"):
        LocalEngine(device="cpu", precision="tf32").start(task, AVERAGE, 0)
    with pytest.raises(SettingError, match=r"engine.processes: several devices have a thread each"):
        LocalEngine(device="cpu,cpu", processes=2).start(task, AVERAGE, 0)
