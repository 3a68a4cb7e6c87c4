"""Linear sketches: their moments, what is exact, and what is refused."""

import math

import pytest
import scipy.linalg
import torch
from torch import Tensor

from fedsim.base.errors import Unfit
from fedsim.base.keys import fold, normal
from fedsim.codecs import Ams, CountSketch, GaussianSketch, RandK, Sketch, SparseSketch, Srht, row_bytes
from fedsim.codecs.sketches import distinct, hadamard, signs

MANY = fold(0, torch.arange(20_000))
SKETCHES = [
    GaussianSketch(count=4),
    Ams(count=4),
    Srht(count=4),
    CountSketch(count=4),
    SparseSketch(count=4, nonzeros=2),
    SparseSketch(count=4, nonzeros=4),
]


def there_and_back(sketch: Sketch | RandK, x: Tensor, key: Tensor) -> Tensor:
    return sketch.carry({"x": x}, {}, key)[0]["x"]


@pytest.mark.parametrize(("sketch", "size", "gain"), [
    (GaussianSketch(count=4), 16, 1 + 17 / 4),
    (Ams(count=4), 16, 1 + 15 / 4),
    (Srht(count=4), 16, 16 / 4),
    (Srht(count=4), 11, 1 + 10 * 3 / 15),
    (CountSketch(count=4), 16, 1 + 15 / 4),
    (SparseSketch(count=4, nonzeros=2), 16, 1 + 15 / 4),
    (RandK(count=4), 16, 16 / 4),
], ids=repr)  # fmt: skip
def test_right_in_the_mean_with_the_gain_of_the_table(sketch: Sketch | RandK, size: int, gain: float) -> None:
    """E|R' R h|^2 = gain |h|^2, and the quality says gain - 1."""
    h = normal(fold(1), size)[None]
    back = there_and_back(sketch, h.expand(len(MANY), -1), MANY).double()
    assert float(back.square().sum(1).mean() / h.square().sum()) == pytest.approx(gain, rel=0.03)
    assert sketch.omega(size) == pytest.approx(gain - 1)
    assert (back.mean(0) - h[0]).square().sum() < 4 * gain / len(MANY) * h.square().sum()


@pytest.mark.parametrize("sketch", SKETCHES, ids=repr)
def test_one_sketch_for_all_is_linear(sketch: Sketch) -> None:
    """With one key, the mean of sketches is the sketch of the mean, and it comes back through the same R'."""
    x, key = normal(fold(3, torch.arange(5)), 12), fold(7)[None]
    y = sketch.sketch(x, key)
    assert torch.allclose(y.mean(0, keepdim=True), sketch.sketch(x.mean(0, keepdim=True), key), atol=1e-6)
    identity = torch.eye(12)
    matrix = sketch.sketch(identity, key).T  # R [s, d]
    assert torch.allclose(sketch.desketch(torch.eye(4), 12, key), matrix, atol=1e-6)


@pytest.mark.parametrize("sketch", [Srht(count=5, fresh=False), CountSketch(count=5, fresh=False), Ams(count=5, fresh=False)], ids=repr)
def test_not_fresh_is_one_sketch_for_all_keys_and_never_right(sketch: Sketch) -> None:
    x = normal(fold(3), 16)[None].expand(4, -1)
    wire = sketch.encode({"x": x}, {}, MANY[:4])["x of 16"]
    assert all(torch.equal(row, wire[0]) for row in wire)
    assert sketch.omega(16) is None
    assert not torch.equal(*(type(sketch)(count=5).encode({"x": x}, {}, MANY[:4])["x of 16"][:2]))


def test_a_whole_hadamard_sketch_changes_nothing_and_a_part_has_a_known_length() -> None:
    x = normal(fold(3, torch.arange(4)), 64)
    assert torch.allclose(there_and_back(Srht(count=64), x, MANY[:4]), x, atol=1e-5)
    y = Srht(count=16).encode({"x": x}, {}, MANY[:4])["x of 64"]
    back = there_and_back(Srht(count=16), x, MANY[:4])
    assert torch.allclose(back.square().sum(1), 64 / 16 * y.square().sum(1), rtol=1e-5)


def test_rows_of_a_part_of_a_hadamard_matrix_are_orthogonal() -> None:
    """R R' = d/s."""
    matrix = Srht(count=4).sketch(torch.eye(16), fold(7)[None]).T
    assert torch.allclose(matrix @ matrix.T, 16 / 4 * torch.eye(4), atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 32, 128])
def test_the_transform_is_hadamards(size: int) -> None:
    x = normal(fold(9, torch.arange(3)), size)
    matrix = torch.from_numpy(scipy.linalg.hadamard(size)).float()
    assert torch.allclose(hadamard(x), x @ matrix, atol=1e-4)


@pytest.mark.parametrize("size", [2, 4, 16, 1024])
def test_places_differ_and_are_drawn_alike(size: int) -> None:
    at = distinct(MANY[:50], size, size)
    assert torch.equal(at.sort(1).values, torch.arange(size).expand(50, -1))
    first = distinct(MANY, max(1, size // 4), size)
    often = torch.bincount(first.flatten(), minlength=size) / first.numel()
    assert (often * size - 1).abs().max() < 6 * math.sqrt(size / first.numel())


def test_signs_are_coins() -> None:
    drawn = signs(MANY[:100], 130)
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(drawn.mean())) < 0.03
    assert abs(float((drawn[:, 1:] * drawn[:, :-1]).mean())) < 0.03
    assert torch.equal(signs(MANY[:100], 70), drawn[:, :70])


def test_sizes() -> None:
    x = {"x": torch.ones(1, 1000)}
    plain = row_bytes({"x of 1000": torch.ones(1, 100)})
    assert {row_bytes(type(sketch)(fraction=0.1).encode(x, {}, MANY[:1])) for sketch in SKETCHES} == {plain}


def test_what_is_wider_or_too_narrow_is_refused() -> None:
    for sketch in SKETCHES:
        with pytest.raises(Unfit, match=r"`count: 9` of a part of 8 numbers"):
            there_and_back(type(sketch)(count=9), torch.ones(1, 8), MANY[:1])
    with pytest.raises(Unfit, match=r"has no 4 blocks"):
        there_and_back(SparseSketch(count=3), torch.ones(1, 8), MANY[:1])
    with pytest.raises(ValueError, match="exclude each other"):
        Srht(count=3, fraction=0.5)


@pytest.mark.parametrize("codec", [*SKETCHES, RandK(count=4)], ids=repr)
def test_slopes_go_back_through_the_transpose(codec: Sketch | RandK) -> None:
    """d/dx v'R'R x = R'R v, for any x; and of what is sent alone, d/dx u'R x = R'u."""
    key, v = fold(5, torch.arange(2)), normal(fold(6, torch.arange(2)), 16)
    x = torch.zeros(2, 16, requires_grad=True)
    [slope] = torch.autograd.grad((v * there_and_back(codec, x, key)).sum(), x)
    torch.testing.assert_close(slope, there_and_back(codec, v, key))
    if isinstance(codec, Sketch):
        [sent] = codec.squeeze(x, key)
        u = normal(fold(7, torch.arange(2)), sent.shape[1])
        torch.testing.assert_close(torch.autograd.grad((u * sent).sum(), x)[0], codec.restore((u,), 16, key))


@pytest.mark.parametrize("codec", [*SKETCHES, RandK(count=4)], ids=repr)
def test_codecs_that_say_so_are_linear(codec: Sketch | RandK) -> None:
    assert codec.linear
    x, key = normal(fold(8, torch.arange(2)), 16), fold(9)[None]
    both, apart = there_and_back(codec, x[:1] + 3 * x[1:], key), there_and_back(codec, x, key.expand(2))
    torch.testing.assert_close(both[0], apart[0] + 3 * apart[1], atol=1e-5, rtol=1e-5)
