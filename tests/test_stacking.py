"""Models with statistics, dropout, recurrence, tied, frozen and embedded parameters: plans agree with each other and with plain PyTorch."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tools import classification
from torch import Tensor, nn

from fedsim.base.keys import fold
from fedsim.gradients.choose import choose, row_bytes
from fedsim.gradients.looped import Looped
from fedsim.gradients.plan import Plan
from fedsim.gradients.stacked import Stacked
from fedsim.gradients.tracing import traced
from fedsim.method.local import Local
from fedsim.method.train import Train
from fedsim.models import Model, Shape, Tokens
from fedsim.models.lora import Lora
from fedsim.models.own import OwnModel
from fedsim.models.pure import statistics
from fedsim.models.residual import ResNet18
from fedsim.models.sequence import CharLstm, Transformer
from fedsim.settings.values import Constant
from fedsim.task.fit import built
from fedsim.task.task import Task
from strategies.fedavg import FedAvg

SMALL = Transformer(width=8, layers=1, heads=2)
EACH, WHOLE = Tokens(4, 7, each=True), Tokens(4, 7)


def normed(input_shape: Shape, outputs: int) -> nn.Module:
    """BatchNorm of every momentum."""
    return nn.Sequential(
        nn.Linear(*input_shape, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4), nn.BatchNorm1d(4, momentum=None), nn.Linear(4, outputs)
    )


class Unrolled(nn.Module):
    """GRU, then RNN."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.GRU(1, 4, batch_first=True), nn.RNN(4, 3, batch_first=True)
        self.head = nn.Linear(3, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.second(self.first(x[..., None])[0])[0][:, -1])
        return out


class Tied(nn.Module):
    """One matrix there and back."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.there, self.back, self.head = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, outputs)
        self.back.weight = self.there.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.back(self.there(x).tanh()))
        return out


MODELS: list[tuple[Model, Shape]] = [
    (OwnModel(normed), (6,)),
    (OwnModel(Unrolled), (6,)),
    (OwnModel(Tied), (6,)),
    (ResNet18(groups=2, width=2), (1, 8, 8)),
    (ResNet18(norm="batch", width=2), (1, 16, 16)),
    (CharLstm(embedding=2, hidden=3), EACH),
    (CharLstm(embedding=2, hidden=3, layers=1), WHOLE),
    (SMALL, WHOLE),
    (Transformer(width=8, layers=1, heads=2, tied=True), EACH),
    (Lora(inner=SMALL, rank=2), EACH),
]
NAMES = ["batch_norm", "gru_rnn", "tied", "resnet_group", "resnet_batch", "lstm_next", "lstm_text", "decoder", "tied_decoder", "lora"]


def task_of(model: Model, shape: Shape, counts: tuple[int, ...] = (7, 3, 11, 2)) -> Task:
    """Images and numbers by key, tokens of unequal length."""
    outputs = 7 if shape == EACH and getattr(shape, "each", False) else 3
    task = classification(list(counts), features=int(np.prod(shape)), model=built(model, shape, outputs, 0))
    samples = task.inputs.view(-1, *shape)
    if isinstance(shape, Tokens):
        length = 2 + torch.arange(len(samples)) % 3
        samples = (samples.abs() * 100).long() % 6 + 1
        samples[torch.arange(4) >= length[:, None]] = 0
        if shape.each:
            task.targets = torch.where(samples > 0, samples.roll(-1, 1), -1)
    task.inputs, task.classes = samples, outputs
    task.init = task.layout.join({name: p.detach() for name, p in task.model.named_parameters()})
    task.buffers, task.first_buffers = statistics(task.model)
    return task


def local_of(task: Task, plan: Plan, nodes: list[int], train: Train) -> Local:
    at = torch.tensor(sorted(nodes, key=lambda node: -int(train.plan(task.counts, train.batch_size(task))[0][node])))
    buffers = task.first_buffers.expand(len(nodes), -1).clone() if task.buffers.size else None
    return Local(plan, task, train, at, fold(0, "job", at), np.zeros(len(nodes), dtype=np.int64), buffers)


def plans(task: Task, chunk: int = 4) -> list[Plan]:
    return [Looped(task, FedAvg().loss, chunk), Stacked(task, FedAvg().loss, chunk, exact=False)]


def torch_loop(task: Task, module: nn.Module, local: Local, row: int) -> None:
    """Plain PyTorch in training mode on one node's batches, without padding."""
    module.train()
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for batch, _ in local.batches(torch.zeros(len(local.nodes), 1)):
        if row < len(batch.inputs):
            counted = batch.weight[row] > 0
            outputs, targets = module(batch.inputs[row][counted]), batch.targets[row][counted]
            optimizer.zero_grad()
            if targets.dim() == 1:
                loss = nn.functional.cross_entropy(outputs, targets)
            else:
                losses = nn.functional.cross_entropy(outputs.transpose(1, 2), targets, ignore_index=-1, reduction="none")
                loss = (losses.sum(1) / (targets >= 0).sum(1)).mean()
            loss.backward()
            optimizer.step()


@pytest.mark.parametrize(("model", "shape"), MODELS, ids=NAMES)
def test_several_steps_are_those_of_plain_pytorch(model: Model, shape: Shape) -> None:
    task, train = task_of(model, shape), Train(epochs=2, batch=4, lr=Constant(0.1))
    kind = task.inputs.dtype
    if isinstance(model, ResNet18) and model.norm == "batch":  # over three samples of one pixel: a change by 1e-7 may become one by 0.1
        kind = torch.float64
        task.model.double()
        task.inputs, task.init, task.first_buffers = (one.double() for one in (task.inputs, task.init, task.first_buffers))
    locals_ = [local_of(task, plan, [0, 2], train) for plan in plans(task)]  # 11 and 7 samples: their last batches are padded
    looped, stacked = (local.descend(task.init.expand(2, -1)) for local in locals_)
    size = task.init.norm()
    assert ((looped - stacked).norm(dim=1) < 1e-5 * size).all() and ((looped - task.init).norm(dim=1) > 1e-3).all()
    for row in range(2):
        module = model.build(shape, task.classes).to(kind if kind.is_floating_point else torch.float32)
        module.load_state_dict(task.model.state_dict())
        torch_loop(task, module, local_of(task, locals_[0].plan, [0, 2], train), row)
        expected = task.layout.join({name: p.detach() for name, p in module.named_parameters()})
        assert (looped[row] - expected).norm() < 1e-5 * size
        if task.buffers.size:
            found = task.buffers.join({name: buffer.to(task.first_buffers.dtype) for name, buffer in module.named_buffers()})
            for local in locals_:
                assert local.buffers is not None
                torch.testing.assert_close(local.buffers[row], found, rtol=1e-4, atol=1e-5)


def batch_of(task: Task, plan: Plan, nodes: list[int], size: int = 4) -> Any:
    local = local_of(task, plan, nodes, Train(steps=1, batch=size))
    return next(batch for (batch,) in local.batches())


DROPPING = Transformer(width=8, layers=1, heads=2, dropout=0.3)
EXACT: list[tuple[Model, Shape]] = [
    (OwnModel(normed), (6,)),
    (CharLstm(embedding=2, hidden=3, dropout=0.5), EACH),
    (DROPPING, WHOLE),
    (Lora(inner=DROPPING, rank=2), EACH),
    (OwnModel(lambda: nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.5), nn.Linear(9, 3))), (6,)),
]


@pytest.mark.parametrize(("model", "shape"), EXACT, ids=["batch_norm", "lstm", "decoder", "lora", "dropout"])
def test_rows_have_the_same_bits_in_any_company(model: Model, shape: Shape) -> None:
    task, nodes = task_of(model, shape, tuple([4] * 7)), list(range(7))
    whole = batch_of(task, Stacked(task, FedAvg().loss, 7, exact=True), nodes)
    x = task.init + 0.01 * torch.arange(7.0)[:, None]
    expected = whole.gradient(x)
    for chunk in (1, 3):
        batch = batch_of(task, Stacked(task, FedAvg().loss, chunk, exact=chunk > 1), nodes)
        assert torch.equal(batch.gradient(x), expected)
        assert batch.buffers is None or torch.equal(batch.buffers, whole.buffers)
    few = batch_of(task, Stacked(task, FedAvg().loss, 7, exact=True), [3, 6])
    assert torch.equal(few.gradient(x[[3, 6]]), expected[[3, 6]])
    one_by_one = batch_of(task, Looped(task, FedAvg().loss, 7), nodes).gradient(x)
    assert (one_by_one - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(("model", "shape"), [MODELS[0], (DROPPING, EACH)], ids=["batch_norm", "dropout"])
def test_padding_never_counts(model: Model, shape: Shape, which: int) -> None:
    task = task_of(model, shape)
    found = []
    for garbage in (0, 3):
        batch = batch_of(task, plans(task)[which], [1])  # three samples in a batch of four
        assert batch.weight[0].tolist() == [pytest.approx(1 / 3)] * 3 + [0]
        inputs, targets = batch.inputs.clone(), batch.targets.clone()
        inputs[0, 3], targets[0, 3] = garbage, 1
        batch = batch.with_(inputs=inputs, targets=targets)
        found.append([batch.gradient(task.init[None]), batch.buffers])
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] is None or torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("which", [0, 1])
def test_a_second_gradient_and_a_loss_can_leave_statistics_alone(which: int) -> None:
    task = task_of(*MODELS[0])
    batch, x = batch_of(task, plans(task)[which], [0, 2]), task.init.expand(2, -1).clone()
    first = batch.buffers.clone()
    kept, value = batch.gradient(x, keep=False), batch.loss(x)
    assert torch.equal(batch.buffers, first)
    assert torch.equal(batch.gradient(x), kept)
    assert not torch.equal(batch.buffers, first)
    assert torch.equal(batch.loss(x), value)  # training uses the batch's own statistics
    batch.descend(x, 0.1)
    torch.testing.assert_close(x, task.init - 0.1 * kept)


def test_dropout_differs_by_step_node_and_turn() -> None:
    task = task_of(*EXACT[4])
    local = local_of(task, plans(task)[1], [0, 2], Train(steps=2, batch=4))
    x = task.init.expand(2, -1)
    one, two = (batch.with_(inputs=torch.ones(2, 4, 6), targets=torch.ones(2, 4, dtype=torch.int64)) for (batch,) in local.batches())
    assert torch.equal(one.gradient(x), one.gradient(x))
    assert len({tuple(row.tolist()) for batch in (one, two) for row in batch.gradient(x)}) == 4


def test_only_adapters_form_the_row_and_the_frozen_model_stays() -> None:
    task = task_of(*MODELS[9])
    assert all("down" in name or "up" in name for name in task.layout.names)
    before = copy.deepcopy(task.model.state_dict())
    local_of(task, plans(task)[1], [0, 1], Train(epochs=1, batch=4)).descend(task.init.expand(2, -1))
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())


class Sides(nn.Module):
    """A recurrent layer of two directions."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(1, 3, batch_first=True, bidirectional=True), nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(x[..., None])[0].mean(1))
        return out


def test_what_does_not_stack_is_looped_and_large_recurrent_layers_are_on_a_cpu() -> None:
    task = task_of(OwnModel(Sides), (6,))
    plan, reason = choose(task, FedAvg().loss, "auto", 4, 1)
    assert plan.name == "looped" and reason.startswith("the model doesn't stack: ValueError: recurrent layers of two directions")
    module = Sides(3)
    module.load_state_dict(task.model.state_dict())
    local = local_of(task, plan, [0, 2], Train(epochs=1, batch=4, lr=Constant(0.1)))
    torch_loop(task, module, local_of(task, plan, [0, 2], local.train), 0)
    expected = task.layout.join({name: p.detach() for name, p in module.named_parameters()})
    torch.testing.assert_close(local.descend(task.init.expand(2, -1))[0], expected, rtol=1e-5, atol=1e-6)
    large = task_of(CharLstm(embedding=2, hidden=128), EACH)
    assert choose(large, FedAvg().loss, "auto", 4, 1)[1] == "large recurrent layers gain nothing from stacking on a CPU"
    assert choose(task_of(*MODELS[5]), FedAvg().loss, "auto", 4, 1)[0].name == "stacked"


def test_the_memory_of_recurrent_layers_is_counted() -> None:
    task = task_of(CharLstm(embedding=2, hidden=3), EACH)
    made = 4 * 2 + 10 * 2 * 4 * 3 + 4 * 7  # embedded, two layers of three units, and outputs at four places
    assert row_bytes(task, batch=5) == 4 * (6 * task.layout.size + 5 * (4 * 4 + 3 * made))


def test_what_depends_on_no_argument_is_computed_once_unless_something_writes_to_it() -> None:
    weight = torch.arange(6.0).view(3, 2)

    def function(x: Tensor) -> Tensor:
        angle = torch.arange(2.0).exp().cos()  # folded, as the transposed weight is
        total = torch.zeros(2)
        total.view(1, 2).add_(x.sum(0))  # begins at zero each time
        return x @ weight.t() + (angle + total).sum()

    graph, _ = traced(function, [x := torch.ones(4, 3)[:, :2]])
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert not {"aten.arange.default", "aten.exp.default", "aten.cos.default", "aten.t.default"} & {*names}
    for given in (x, 2 * x):
        assert torch.equal(graph.forward(given), function(given))


def test_a_view_of_a_view_is_one_view() -> None:
    graph, _ = traced(lambda x: x.view(6, 4).view(2, 12).exp().view(24).view(4, 6), [torch.ones(2, 3, 4)])
    assert sum(node.op == "call_function" for node in graph.graph.nodes) == 3
