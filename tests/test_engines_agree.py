"""One scenario, every engine: plans agree to rounding, and processes, chunks and memory change no bit."""

import shutil

import pytest
import torch
from test_plans import IMAGES, arguments, task_of
from tools import classification, durations, federation, run

from fedsim.base import memory
from fedsim.base.errors import RunError, SettingError
from fedsim.engines import local
from fedsim.engines.local import LocalEngine
from fedsim.engines.processes import Pool
from fedsim.gradients.choose import row_bytes, rows_at_once
from fedsim.gradients.graphs import Compiled
from fedsim.gradients.looped import Looped
from fedsim.gradients.stacked import Stacked
from fedsim.method.strategy import Strategy
from fedsim.models import Cnn, Logistic, Mlp
from fedsim.schedule import Buffered, Gossip, Rounds
from fedsim.settings.values import Count
from strategies.dsgd import Dsgd
from strategies.fedavg import FedAvg
from strategies.fedbuff import FedBuff
from strategies.fedstale import FedStale

WORLD = durations(1, "1/2", "2/3", "3/2", 1, "1/3")
METHODS: list[Strategy] = [
    FedAvg(schedule=Rounds(Count(5))),
    FedStale(schedule=Rounds(Count(4))),
    FedBuff(schedule=Buffered(3, Count(5))),
    Dsgd(schedule=Gossip()),
]


@pytest.mark.parametrize("strategy", METHODS, ids=lambda s: s.name)
def test_plans_agree_and_processes_change_no_bit(strategy: Strategy) -> None:
    task = classification([3, 40, 7, 1, 22, 5])
    stacked = run(task, strategy, 6, WORLD, plan="stacked").state["model"]
    looped = run(task, strategy, 6, WORLD, plan="looped").state["model"]
    torch.testing.assert_close(stacked, looped, rtol=1e-5, atol=1e-6)
    for plan, expected in (("stacked", stacked), ("looped", looped)):
        for processes in (1, 2, 4):
            fed = federation(task, strategy, 6, WORLD, plan=plan, processes=processes)
            fed.run()
            fed.worker.close()
            assert torch.equal(fed.state["model"], expected)


def test_an_error_in_another_process_is_the_error_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("own fault")

    fed = federation(classification([3, 4, 5, 6]), FedAvg(schedule=Rounds(Count(4))), 2, plan="looped", processes=2)
    monkeypatch.setattr("fedsim.method.local.Local.descend", broken)
    with pytest.raises(RunError, match=r"round 1: the work of clients .* raised ZeroDivisionError: own fault"):
        fed.run()
    fed.worker.close()


def test_a_process_that_dies_ends_the_run_with_an_error() -> None:
    fed = federation(classification([3, 4, 5, 6]), FedAvg(schedule=Rounds(Count(4))), 3, plan="looped", processes=2)
    pool = fed.worker.pool
    assert pool is not None
    fed.send(fed.idle())
    fed.merge(fed.receive())
    pool.children[0].kill()
    pool.children[0].join()
    fed.send(fed.idle())
    with pytest.raises(RunError, match=r"^round 2: the work of clients .*: a worker process was ended by SIGKILL, .*`engine.processes: 1`"):
        fed.receive()
    fed.worker.close()
    assert not pool.children


def test_processes_end_when_told_though_others_hold_their_pipes() -> None:
    found = dict[int, int]()
    pools = [Pool(abs, 2) for _ in range(2)]
    for pool in pools:
        pool.map([-3, -4, 5], found.__setitem__)
    for pool in pools:
        children = [*pool.children]
        pool.close()
        assert [child.exitcode for child in children] == [0, 0]  # nobody had to kill them
    assert found == {0: 3, 1: 4, 2: 5}


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("c++") is None, reason="the compiled plan needs a C++ compiler")
def test_the_compiled_plan_agrees() -> None:
    task = task_of(Mlp(hidden=(8,)), (6,))
    x, samples = arguments(task, 5)
    compiled, stacked = Compiled(task, FedAvg().loss, 3), Stacked(task, FedAvg().loss, 3, exact=True)
    gradient = stacked.gradient(x, samples)
    torch.testing.assert_close(compiled.gradient(x, samples), gradient, rtol=1e-5, atol=1e-6)
    for lr in (0.1, 0.4):  # part of the function: a second one is not the first
        y = x.clone()
        compiled.descend(y, lr, samples)
        torch.testing.assert_close(y, x - lr * gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("plan", [Looped, Stacked])
def test_bfloat16_is_near_float32_and_rows_stay_float32(plan: type[Looped] | type[Stacked]) -> None:
    task = task_of(Logistic(), (6,))  # without a ReLU, whose slope may flip where rounding changes a sign
    x, samples = arguments(task, 3)
    exact = Looped(task, FedAvg().loss, 3).gradient(x, samples)
    near = (Looped(task, FedAvg().loss, 3, "bfloat16") if plan is Looped else Stacked(task, FedAvg().loss, 3, False, "bfloat16")).gradient(
        x, samples
    )
    error = float((near - exact).norm() / exact.norm())
    assert near.dtype == torch.float32 and 1e-6 < error < 2e-2


def test_a_chunk_has_as_many_rows_as_the_memory_has_room_for() -> None:
    task = task_of(Mlp(hidden=(8,)), (6,))
    d, batch = task.layout.size, 4
    assert d == 6 * 8 + 8 + 8 * 3 + 3
    each = 4 * (6 * d + batch * (4 * 6 + 3 * (6 + 8 + 8 + 3)))  # layers: flat 6, linear 8, ReLU 8, linear 3
    assert row_bytes(task, batch) == each
    assert rows_at_once(task, batch, 1000, 7 * each) == 7
    assert rows_at_once(task, batch, 5, 7 * each) == 5
    assert rows_at_once(task, batch, 1000, 1 << 30) == 100
    with pytest.raises(SettingError, match=r"engine.memory: .* is too small: one model of 83 parameters with a batch of 4"):
        rows_at_once(task, batch, 1, each - 1)


def test_memory_changes_no_bit_of_a_dense_model() -> None:
    task, strategy = classification([3, 40, 7, 1, 22, 5]), FedAvg(schedule=Rounds(Count(6)))
    expected = run(task, strategy, 3).state["model"]
    budget = 2 * row_bytes(task, strategy.train.batch_size(task))
    fed = run(task, strategy, 3, memory=budget)
    assert fed.worker.chunk == 2 and torch.equal(fed.state["model"], expected)
    assert federation(task, strategy, memory=budget, chunk=7).worker.chunk == 2
    assert federation(task, strategy, memory=1 << 30, chunk=300).worker.chunk == 300  # memory has room, and 300 was asked for


def test_a_model_that_needs_more_than_the_usual_memory_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    task, strategy = classification([3, 40, 7]), FedAvg(schedule=Rounds(Count(3)))
    expected, each = run(task, strategy, 2).state["model"], row_bytes(task, strategy.train.batch_size(task))
    monkeypatch.setattr(local, "MEMORY", each - 1)
    fed = run(task, strategy, 2)
    assert (fed.worker.memory, fed.worker.chunk) == (each, 1) and torch.equal(fed.state["model"], expected)
    monkeypatch.setattr(memory, "memory", lambda: each - 1)
    with pytest.raises(SettingError, match=r"task.model: training one model of .* would take about .* of memory, and this machine has"):
        federation(task, strategy)


def test_what_can_t_be_is_refused() -> None:
    task = task_of(Logistic(), (6,))
    with pytest.raises(SettingError, match=r"engine.plan: `cuda_graphs` needs a CUDA device"):
        LocalEngine(device="cpu", plan="cuda_graphs").start(task, FedAvg(), 0)


def test_convolutions_use_the_cores_and_dense_models_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.gradients.choose.cores", lambda: 3)
    strategy = FedAvg(schedule=Rounds(Count(2)))
    assert LocalEngine(device="cpu").start(task_of(Cnn(), IMAGES), strategy, 0).about["processes"] == 2  # no more than work at once
    assert LocalEngine(device="cpu").start(task_of(Mlp(), (6,)), strategy, 0).about["processes"] == 1


@pytest.mark.gpu
@pytest.mark.parametrize("plan", ["stacked", "cuda_graphs"])
def test_a_gpu_agrees_with_the_cpu(plan: str) -> None:
    task, strategy = classification([3, 40, 7, 1, 22, 5]), FedAvg(schedule=Rounds(Count(5)))
    expected = run(task, strategy, 3).state["model"]
    worker = LocalEngine(device="cuda", plan=plan).start(task, strategy, 0)  # type: ignore[arg-type]
    x, samples = arguments(task, 4)
    on_device = type(samples)(*(tensor.cuda() for tensor in samples.flat()))
    found = worker.plan.gradient(x.cuda(), on_device).cpu()
    torch.testing.assert_close(found, Looped(task, FedAvg().loss, 4).gradient(x, samples), rtol=1e-5, atol=1e-6)
    assert torch.isfinite(expected).all()
