"""Sequence models and adapters: shapes, padding, causality, what moves and what does not."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from fedsim.base.errors import SettingError
from fedsim.base.rows import Layout
from fedsim.models import Cnn, Mlp, Model, Tokens
from fedsim.models.lora import Adapter, Lora
from fedsim.models.own import OwnModel
from fedsim.models.sequence import CharLstm, Transformer, last_token

EACH, WHOLE = Tokens(6, 11, each=True), Tokens(6, 11)
SMALL = Transformer(width=8, layers=2, heads=2)
SEQUENCES: list[Model] = [CharLstm(embedding=3, hidden=5), SMALL, Lora(inner=SMALL)]


def tokens(*shape: int) -> Tensor:
    return 1 + torch.arange(int(torch.tensor(shape).prod())).view(shape) * 7 % 10


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (CharLstm(), 819_920),  # LEAF's
        (Transformer(context=80), 80 * 64 * 2 + 2 * (4 * 64 * 64 + 8 * 64 * 64 + (4 + 5 + 4) * 64) + 2 * 64 + 64 * 80),
        (Transformer(context=80, tied=True), 80 * 64 * 2 + 2 * (4 * 64 * 64 + 8 * 64 * 64 + (4 + 5 + 4) * 64) + 2 * 64),
        (Lora(inner=Transformer(), rank=4), 2 * 4 * (64 + 192 + 64 + 64 + 64 + 256 + 256 + 64) + 4 * (64 + 80)),
    ],
)
def test_number_of_parameters(model: Model, parameters: int) -> None:
    module = model.build(Tokens(80, 80, each=True), 80)
    assert Layout.of(module).size == parameters
    assert module(tokens(2, 80)).shape == (2, 80, 80)


@pytest.mark.parametrize("model", SEQUENCES, ids=lambda model: model.name)
def test_padding_changes_nothing_and_no_place_sees_what_comes_later(model: Model) -> None:
    assert model.takes_tokens()
    torch.manual_seed(0)
    each, x = model.build(EACH, 11), tokens(2, 6)
    other = torch.cat([x[:, :4], x[:, 4:] % 10 + 1], 1)
    torch.testing.assert_close(each(other)[:, :4], each(x)[:, :4])
    assert not torch.allclose(each(other)[:, 4:], each(x)[:, 4:])
    torch.manual_seed(0)
    whole = model.build(Tokens(9, 11), 3)
    assert whole(x).shape == (2, 3)
    torch.testing.assert_close(whole(nn.functional.pad(x, (0, 3))), whole(x))
    assert not torch.allclose(whole(nn.functional.pad(x[:, :5], (0, 1))), whole(x))


def test_the_last_token_is_the_last_that_is_not_zero() -> None:
    hidden = torch.arange(12.0).view(3, 4, 1)
    x = torch.tensor([[5, 0, 2, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert last_token(x, hidden)[:, 0].tolist() == [2, 7, 8]


def test_a_tied_matrix_stands_once() -> None:
    tied = Transformer(width=8, heads=2, tied=True).build(EACH, 11)
    assert "head.weight" not in Layout.of(tied).names and tied.head.weight is tied.tokens.weight


def test_adapters_begin_as_the_frozen_model_and_only_they_move() -> None:
    torch.manual_seed(0)
    plain = SMALL.build(EACH, 11)
    torch.manual_seed(0)
    module, x = Lora(inner=SMALL, rank=2, alpha=6).build(EACH, 11), tokens(3, 6)
    assert torch.equal(module(x), plain(x))
    names = Layout.of(module).names
    assert all(name.endswith(("down.weight", "up.weight")) for name in names) and len(names) == 2 * (2 * 4 + 1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for _ in range(2):  # the first step moves only what begins as zero
        module(x).square().sum().backward()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(names)


def test_an_adapter_by_hand() -> None:
    adapter = Adapter(nn.Linear(2, 1), 1, 3.0)
    with torch.no_grad():
        for parameter, value in zip(adapter.parameters(), ([[1.0, 2.0]], [0.5], [[1.0, -1.0]], [[10.0]]), strict=True):
            parameter.copy_(torch.tensor(value))
    assert adapter(torch.tensor([[1.0, 1.0], [3.0, 1.0]])).tolist() == [[3.5], [5.5 + 3 * 10 * 2]]


def test_frozen_weights_come_from_a_file(tmp_path: Path) -> None:
    whole = Mlp(hidden=(3,)).build((4,), 2)
    safetensors.torch.save_file(dict(whole.named_parameters()), tmp_path / "model.safetensors")
    lora = Lora(inner=Mlp(hidden=(3,)), weights="model.safetensors").anchored(tmp_path)
    x = torch.rand(5, 4)
    torch.testing.assert_close(lora.build((4,), 2)(x), whole(x))
    assert Lora(inner=Mlp(), weights="elsewhere").anchored(tmp_path) == Lora(inner=Mlp(), weights="elsewhere")
    for model, text in (
        (Lora(inner=Mlp(hidden=(3,)), weights="nothing"), "`nothing` can't be read"),
        (Lora(inner=Mlp(hidden=(5,)), weights="model.safetensors"), r"`1.weight` of shape \[5, 4\] is needed, .* it in shape \[3, 4\]"),
        (Lora(inner=Mlp(hidden=(3, 3)), weights="model.safetensors"), r"`3.weight` of shape \[3, 3\] is needed, .*\[2, 3\]"),
        (Lora(inner=Mlp(hidden=()), weights="model.safetensors"), r"`1.weight` of shape \[2, 4\] is needed"),
    ):
        with pytest.raises(SettingError, match=f"^task.model.weights: {text}"):
            model.anchored(tmp_path).build((4,), 2)
    safetensors.torch.save_file(dict(whole.named_parameters()) | {"more": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(SettingError, match="holds `more`, which the inner model has not"):
        lora.build((4,), 2)


@pytest.mark.parametrize(
    ("model", "shape", "text"),
    [
        (CharLstm(), (6,), r"task.model: samples of token numbers are needed, not of numbers in shape \[6\]"),
        (CharLstm(layers=1, dropout=0.1), WHOLE, "task.model.dropout: stands between layers"),
        (Transformer(heads=3), WHOLE, "task.model.heads: 3 heads don't divide a width of 64"),
        (Transformer(context=5), WHOLE, "task.model.context: samples have 6 tokens, more than 5"),
        (Transformer(tied=True), WHOLE, "task.model.tied: needs targets that are the next tokens"),
        (Lora(inner=Transformer(heads=3)), WHOLE, "task.model.inner.heads: 3 heads"),
        (Lora(inner=OwnModel(nn.Conv1d, {"in_channels": 1, "out_channels": 1, "kernel_size": 1})), (1, 6), "has no linear layer to adapt"),
        (Mlp(), WHOLE, "task.model: samples of numbers are needed, not of token numbers"),
        (Cnn(), WHOLE, r"images are needed, not samples of shape \[6\]"),
    ],
)
def test_what_does_not_suit_is_refused(model: Model, shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        model.build(shape, 11)
