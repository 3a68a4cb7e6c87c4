"""Numbers in few bits, worked out by hand."""

import math

import pytest
import torch

from fedsim.base.keys import fold, normal
from fedsim.codecs import Codec
from fedsim.codecs.blocks import Blocks8, codebook, quantised, restored
from fedsim.codecs.quantised import Natural, Qsgd, Sign, Ternary, Uniform

KEY = torch.zeros(1, dtype=torch.int64)


def through(codec: Codec, x: torch.Tensor, key: torch.Tensor = KEY) -> torch.Tensor:
    return codec.decode(codec.encode({"x": x}, {}, key), {}, key)[0]["x"]


def size(codec: Codec, count: int) -> int:
    """Bytes of the numbers of a part of so many."""
    return sum(part.nbytes for part in codec.encode({"x": torch.ones(1, count)}, {}, KEY).values())


def test_sign_is_a_bit_a_number_and_the_mean() -> None:
    assert through(Sign(), torch.tensor([[3.0, -1.0, 0.0, -4.0]])).tolist() == [[2.0, -2.0, 2.0, -2.0]]
    assert size(Sign(), 1001) == 126 + 4


def test_natural_is_the_nearest_power_of_two_and_from_halfway_up() -> None:
    x = torch.tensor([[1.0, 1.49, 1.5, -1.5, 3.1, 2.9, -0.75, 0.7, 1e-40, 3e38, -3e38]])
    back = through(Natural(rounding="nearest"), x)[0].tolist()
    assert back == [1.0, 1.0, 2.0, -2.0, 4.0, 2.0, -1.0, 0.5, 0.0, math.inf, -math.inf]
    assert size(Natural(), 1001) == 1001 + 126


def test_natural_goes_up_as_often_as_it_is_above() -> None:
    """1.25 = 3/4 x 1 + 1/4 x 2."""
    back = through(Natural(), torch.full((1, 40_000), 1.25))
    assert set(back[0].tolist()) == {1.0, 2.0}
    assert abs(float((back == 2).float().mean()) - 0.25) < 0.01


def test_qsgd_has_multiples_of_length_over_levels() -> None:
    """|(3, -4)| = 5: with five levels nothing is left to chance, with two 3/5 lies between 1/2 and 1."""
    x = torch.tensor([[3.0, -4.0, 0.0, 0.0, 6.0, 8.0]])
    assert through(Qsgd(levels=5, bucket=2), x).tolist() == x.tolist()
    many = through(Qsgd(levels=2, bucket=2), x[:, :2].expand(10_000, 2), fold(0, torch.arange(10_000)))
    assert set(many[:, 0].tolist()) == {2.5, 5.0} and set(many[:, 1].tolist()) == {-2.5, -5.0}
    assert abs(float(many[:, 0].mean()) - 3) < 0.05


@pytest.mark.parametrize(("levels", "bits"), [(1, 2), (3, 3), (4, 4), (15, 5), (16, 6), (127, 8)])
def test_qsgd_takes_its_bits(levels: int, bits: int) -> None:
    """1 + ceil(log2(s + 1)) a number, 32 a bucket, the last one shorter."""
    assert bits == 1 + math.ceil(math.log2(levels + 1))
    assert size(Qsgd(levels=levels, bucket=100), 1001) == math.ceil(1001 * bits / 8) + 4 * 11


def test_ternary_has_three_values() -> None:
    x = torch.tensor([[0.5, -2.0, 1.0, 0.0]])
    many = through(Ternary(), x.expand(20_000, 4), fold(0, torch.arange(20_000)))
    assert [set(column.tolist()) for column in many.T] == [{0.0, 2.0}, {-2.0}, {0.0, 2.0}, {0.0}]
    assert (many.mean(0) - x).abs().max() < 0.03
    assert size(Ternary(bucket=500), 1001) == 251 + 12


def test_uniform_steps_go_from_the_least_to_the_greatest() -> None:
    x = torch.tensor([[-1.0, 0.0, 1.0, 2.0, 0.5, 0.5, 0.5, 0.5]])
    assert through(Uniform(bits=2, bucket=4), x).tolist() == x.tolist()
    assert [size(Uniform(bits=bits, bucket=100), 1001) for bits in (8, 4, 2)] == [1001 + 88, 501 + 88, 251 + 88]  # type: ignore[arg-type]


def test_the_codebook_is_the_papers() -> None:
    book = codebook(torch.device("cpu"))
    assert len(book) == 256 and len(book.unique()) == 256
    assert [float(book[0]), float(book[-1])] == [pytest.approx(-0.99296875), 1.0]
    assert float(book.abs()[book != 0].min()) == pytest.approx(5.5e-7)
    assert float(book.diff().max()) == pytest.approx(0.0140625, rel=1e-5)


def test_blocks_are_rounded_to_the_nearest_value_and_halfway_down() -> None:
    """Against a search of the whole book, with numbers at and right beside every threshold."""
    book = codebook(torch.device("cpu"))
    edges = (book[1:] + book[:-1]) / 2
    beside = [torch.nextafter(edges, torch.full_like(edges, way)) for way in (-2.0, 2.0)]
    x = torch.cat([book, edges, *beside, normal(torch.tensor(1), 3000).clamp(-1, 1), torch.logspace(-12, 0, 500)])
    x = torch.cat([x, x.new_zeros(-len(x) % 63)]).view(-1, 63)
    x = torch.cat([x, torch.ones(len(x), 1)], 1)  # the greatest of each block
    back = through(Blocks8(block=64), x.view(1, -1))
    assert torch.equal(back.flatten(), book[torch.bucketize(x.flatten(), edges)])


def test_blocks_without_signs_are_twice_as_fine_and_what_is_not_0_does_not_become_0() -> None:
    book = codebook(torch.device("cpu"), signed=False)
    assert len(book.unique()) == 256 and [float(book[0]), float(book[-1])] == [0.0, 1.0]
    assert [float(book[1]), float(book.diff().max())] == [pytest.approx(3.25e-7), pytest.approx(0.00703125, rel=1e-5)]
    edges = (book[1:] + book[:-1]) / 2
    edges[0] = 0
    beside = [torch.nextafter(edges, torch.full_like(edges, way)).clamp(min=0) for way in (-2.0, 2.0)]
    x = torch.cat([book, edges, *beside, normal(torch.tensor(1), 500).abs().clamp(max=1), torch.logspace(-30, 0, 300)])
    x = torch.cat([x, x.new_zeros(-len(x) % 63)]).view(-1, 63)
    x = 8 * torch.cat([x, torch.ones(len(x), 1)], 1).view(1, -1)
    back = restored(*quantised(x, 64, signed=False), 64, signed=False)
    assert torch.equal(back, 8 * book[torch.bucketize(x / 8, edges)])
    assert torch.equal(back > 0, x > 0) and ((back - x).abs() <= 8 * 0.003516).all()


def test_blocks_do_not_move_twice_and_have_known_sizes() -> None:
    codec = Blocks8(block=64)
    x = 3 * normal(torch.tensor([2]), 1000)
    x[:, ::64] = 20.0  # a positive greatest
    once = through(codec, x)
    assert torch.equal(through(codec, once), once)
    assert ((once - x).abs() <= 0.00703126 * 20).all()
    assert through(codec, torch.tensor([[-3.0, 0.0]])).tolist() == [[pytest.approx(-3 * 0.99296875), 0.0]]
    assert size(codec, 1001) == 1001 + 4 * 16
    assert size(Blocks8(block=4096), 8192) == 8192 + 8
