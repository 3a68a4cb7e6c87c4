"""Pure layers do what torch's do, count only samples with a weight, and stack over rows."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fedsim.base.keys import fold, normal
from fedsim.base.rows import Layout
from fedsim.models.pure import PureBatchNorm, call_of, draws, pure, statistics


def numbers(seed: str, *shape: int) -> Tensor:
    return normal(fold(0, seed), int(torch.tensor(shape).prod())).view(shape)


def weights(*given: float) -> Tensor:
    return torch.tensor(given)


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.BatchNorm1d, ()), (nn.BatchNorm1d, (5,)), (nn.BatchNorm2d, (3, 4)), (nn.BatchNorm3d, (2, 3, 2))]
)
@pytest.mark.parametrize("settings", [{}, {"momentum": None}, {"momentum": 0.3, "affine": False}, {"track_running_stats": False}])
def test_batch_norm_over_several_steps_is_torch_s(layer: type[nn.Module], shape: tuple[int, ...], settings: dict[str, object]) -> None:
    theirs, ours = layer(3, **settings), pure(layer(3, **settings))
    call = call_of(ours)
    assert call is not None and isinstance(ours, PureBatchNorm)
    buffers = {name: buffer.float() for name, buffer in ours.named_buffers()}
    for step in range(3):
        x = 2 + 3 * numbers(f"x{step}", 6, 3, *shape)
        padded = torch.cat([x, 100 + numbers("padding", 2, 3, *shape)])  # whatever stands there
        with call.training(weights(*[1 / 6] * 6, 0, 0), None) as new:
            found = functional_call(ours, buffers, (padded,))[:6]
            buffers |= new
        torch.testing.assert_close(found, theirs(x), rtol=1e-5, atol=1e-5)
    for name, buffer in theirs.named_buffers():
        if name != "num_batches_tracked" or theirs.momentum is None:
            torch.testing.assert_close(buffers[name], buffer.float(), rtol=1e-5, atol=1e-6)
    x = numbers("test", 4, 3, *shape)
    torch.testing.assert_close(functional_call(ours, buffers, (x,)), theirs.eval()(x), rtol=1e-5, atol=1e-5)


def test_batch_norm_by_hand() -> None:
    layer = pure(nn.BatchNorm1d(1, momentum=0.5, eps=0))
    call = call_of(layer)
    assert call is not None
    with call.training(weights(0.5, 0.5, 0), None) as new:
        assert layer(torch.tensor([[1.0], [3.0], [50.0]]))[:2, 0].tolist() == [-1, 1]  # mean 2, variance 1
    assert new["running_mean"].tolist() == [1.0]  # (0 + 2) / 2
    assert new["running_var"].tolist() == [1.5]  # (1 + 2) / 2: unbiased
    with call.training(weights(1, 0), None) as new:
        layer(torch.tensor([[7.0], [50.0]]))
    assert (new["running_mean"].tolist(), new["running_var"].tolist()) == ([0], [1])  # one value has no spread
    assert torch.equal(layer(torch.tensor([[7.0]])), torch.tensor([[7.0]]))  # evaluation: first statistics


def test_rows_made_of_a_sample_s_places_count_with_it() -> None:
    layer = pure(nn.BatchNorm1d(1, momentum=1.0))
    call = call_of(layer)
    assert call is not None
    x = torch.tensor([[1.0], [2.0], [3.0], [6.0], [90.0], [90.0]])
    with call.training(weights(0.5, 0.5, 0), None) as new:
        layer(x)
    assert new["running_mean"].tolist() == [3.0]
    with call.training(weights(0.5, 0.5, 0, 0), None), pytest.raises(ValueError, match="6 rows for a batch of 4 samples"):
        layer(x)


def test_a_frozen_norm_uses_its_statistics_and_has_none_to_renew() -> None:
    layer = pure(nn.BatchNorm1d(2).eval())
    call = call_of(layer)
    assert call is not None
    with call.training(weights(0.5, 0.5), None) as new:
        torch.testing.assert_close(layer(torch.ones(2, 2)), torch.ones(2, 2))
    assert new == {} and statistics(layer)[0].size == 0


def test_statistics_form_a_row_of_their_own() -> None:
    module = pure(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.BatchNorm1d(3, momentum=None)))
    layout, first = statistics(module)
    assert layout.names == ("1.running_mean", "1.running_var", "3.running_mean", "3.running_var", "3.num_batches_tracked")
    assert first.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0]
    assert Layout.of(module).names == ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias")


def test_dropout_keeps_the_share_asked_and_its_mean() -> None:
    layer = pure(nn.Dropout(0.25))
    call = call_of(layer)
    assert call is not None and draws(layer)
    x = torch.ones(100, 1000)
    with call.training(torch.ones(100), fold(1)):
        found = layer(x)
    assert found.unique().tolist() == [0, pytest.approx(4 / 3)]
    assert float((found == 0).double().mean()) == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 1e5) ** 0.5)
    assert torch.equal(layer(x), x)  # evaluation


@pytest.mark.parametrize(("layer", "shape"), [(nn.Dropout1d, (50, 7, 5)), (nn.Dropout2d, (50, 7, 2, 3)), (nn.Dropout3d, (50, 7, 2, 2, 2))])
def test_whole_channels_are_left_out(layer: type[nn.Module], shape: tuple[int, ...]) -> None:
    module = pure(layer(0.5))
    call = call_of(module)
    assert call is not None
    with call.training(torch.ones(50), fold(1)):
        found = module(torch.ones(shape)).flatten(2)
    assert ((found == 0).all(-1) | (found == 2).all(-1)).all()
    assert 0.3 < float((found == 0).float().mean()) < 0.7


def test_dropout_is_a_function_of_key_and_place_in_any_company() -> None:
    module = pure(nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)))
    call = call_of(module)
    assert call is not None

    def masked(x: Tensor, key: Tensor) -> Tensor:
        with call.training(x[:, 0], key):
            return module(x)

    keys, x = fold(3, torch.arange(4)), torch.ones(4, 8, 6)
    together = make_fx(vmap(masked))(x, keys)(x, keys)
    for row in range(4):
        assert torch.equal(together[row], masked(x[row], keys[row]))
    assert torch.equal(make_fx(vmap(masked))(x[1:3], keys[1:3])(x[1:3], keys[1:3]), together[1:3])
    assert set(together.unique().tolist()) == {0.0, 4.0}  # two layers with numbers of their own: a quarter is left
    assert not torch.equal(together[0], together[1])
    with call.training(x[0, :, 0], keys[0]):
        assert torch.equal(module[0](x[0]) * module[1](x[0]), together[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "batch_first": True}, {"bias": False}])
@pytest.mark.parametrize("cells", [True, False])
def test_recurrent_layers_are_torch_s(
    kind: type[nn.RNNBase], settings: dict[str, object], cells: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cells:
        monkeypatch.setattr("fedsim.models.pure.is_functorch_wrapped_tensor", lambda x: True)
    torch.manual_seed(0)
    theirs = kind(3, 5, **settings)
    ours = pure(kind(3, 5, **settings))
    ours.load_state_dict(theirs.state_dict())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    x = numbers("x", 4, 6, 3)
    states = numbers("h", settings.get("num_layers", 1), 4 if settings.get("batch_first") else 6, 5)  # type: ignore[call-overload]
    for start in ((), ((states, -states) if kind is nn.LSTM else states,)):
        for found, expected in zip(ours(x, *start), theirs(x, *start), strict=True):
            pairs = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
            for one, other in pairs:
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    ours(x)[0].square().sum().backward()
    theirs(x)[0].square().sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("settings", [{"bidirectional": True, "num_layers": 2}, {"proj_size": 2}])
def test_two_directions_and_projections_are_torch_s_and_do_not_stack(settings: dict[str, object]) -> None:
    theirs, ours = nn.LSTM(3, 5, **settings), pure(nn.LSTM(3, 5, **settings))  # type: ignore[arg-type]
    values = {name: numbers(name, *p.shape) for name, p in theirs.named_parameters()}
    theirs.load_state_dict(values)
    x = numbers("x", 4, 6, 3)
    assert torch.equal(functional_call(ours, values, (x,))[0], theirs(x)[0])
    with pytest.raises(ValueError, match="two directions, or with projections, neither stack"):
        vmap(lambda row: ours(row)[0])(x[None])


def test_rnn_with_relu_is_torch_s_and_single_sequences_are_refused() -> None:
    theirs = nn.RNN(2, 3, nonlinearity="relu")
    ours = pure(nn.RNN(2, 3, nonlinearity="relu"))
    ours.load_state_dict(theirs.state_dict())
    x = numbers("x", 4, 5, 2)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])
    with pytest.raises(ValueError, match="a tensor of three axes"):
        ours(x[0])


def test_dropout_between_recurrent_layers_is_keyed_and_scaled() -> None:
    layer = pure(nn.LSTM(2, 4, 2, dropout=0.5))
    call = call_of(layer)
    assert call is not None and draws(layer)
    x = numbers("x", 5, 3, 2)
    with call.training(torch.ones(3), fold(0)):
        one, again = layer(x)[0], layer(x)[0]  # two askings of one call
    with call.training(torch.ones(3), fold(0)):
        assert torch.equal(layer(x)[0], one)
    assert not torch.equal(one, again)
    assert not torch.equal(layer(x)[0], one)
    assert not draws(pure(nn.LSTM(2, 4, 1)))


def test_recurrent_gradients_stack_and_trace() -> None:
    module = pure(nn.LSTM(2, 3, 2, batch_first=True))
    layout = Layout.of(module)

    def value(row: Tensor, x: Tensor) -> Tensor:
        return functional_call(module, layout.views(row), (x,))[0].square().sum()

    rows, x = numbers("rows", 3, layout.size), numbers("x", 3, 4, 5, 2)
    found = make_fx(vmap(grad(value)))(rows, x)(rows, x)
    for row in range(3):
        torch.testing.assert_close(found[row], grad(value)(rows[row], x[row]), rtol=1e-4, atol=1e-6)


def test_layers_that_might_do_something_else_stay_as_they_are() -> None:
    class Mine(nn.BatchNorm1d):
        pass

    for layer in (Mine(2), nn.AlphaDropout(0.5), nn.Linear(2, 2)):
        kind = type(layer)
        assert type(pure(nn.Sequential(layer))[0]) is kind
        assert call_of(layer) is None
