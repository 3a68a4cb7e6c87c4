"""What every codec promises: quality, sizes, bytes there and back, and that rows don't depend on each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsim.base.keys import fold, normal
from fedsim.base.rows import Rows
from fedsim.codecs import Codec, pack, row_bytes, unpack
from fedsim.codecs.blocks import Blocks8
from fedsim.codecs.feedback import Ef14, Ef21
from fedsim.codecs.lowrank import PowerSgd
from fedsim.codecs.plain import BFloat16, Chain, Float16, Identity
from fedsim.codecs.quantised import Natural, Qsgd, Sign, Ternary, Uniform
from fedsim.codecs.scalar import Scalars
from fedsim.codecs.sketches import Ams, CountSketch, Dense, GaussianSketch, SparseSketch, Srht
from fedsim.codecs.sparse import RandK, Threshold, TopK
from fedsim.report.listing import listing
from fedsim.scenario.parts import candidates, part_name

CODECS = [
    Identity(),
    Float16(),
    BFloat16(),
    TopK(fraction=0.1),
    TopK(fraction=0.6),
    Sign(),
    Natural(),
    Natural(rounding="nearest"),
    Qsgd(levels=1, bucket=7),
    Qsgd(bucket=16),
    Ternary(bucket=5),
    Uniform(bits=8, bucket=3),
    Uniform(bits=4, bucket=16),
    Uniform(bits=2, bucket=1000),
    Blocks8(block=64),
    RandK(fraction=0.3),
    RandK(fraction=0.3, scaled=False),
    Threshold(fraction=0.5),
    GaussianSketch(fraction=0.4),
    Ams(fraction=0.4),
    Srht(fraction=0.4),
    Srht(count=2, fresh=False),
    CountSketch(fraction=0.4),
    SparseSketch(fraction=0.5, nonzeros=1),
    PowerSgd(rank=1),
    Ef14(Sign()),
    Ef14(PowerSgd(rank=1)),
    Ef21(TopK(fraction=0.2)),
    Ef21(Qsgd()),
    Chain((TopK(fraction=0.3), Float16())),
    Chain((TopK(fraction=0.3), Qsgd(bucket=8))),
    Chain((TopK(fraction=0.3), Natural(rounding="nearest"))),
    Chain((RandK(fraction=0.5), Natural())),
    Ef21(Chain((TopK(fraction=0.5), Qsgd(levels=1)))),
]
EACH = pytest.mark.parametrize("codec", CODECS, ids=repr)
KINDS = {
    "normal": lambda x: x,
    "heavy": lambda x: x**5,
    "one": lambda x: x * (x == x.amax()),
    "same": lambda x: torch.full_like(x, -2.5),
    "small": lambda x: 1e-12 * x,
    "large": lambda x: 1e12 * x,
}
KIND = st.sampled_from([*KINDS])


def drawn(rows: int, size: int, kind: str = "normal", seed: int = 0) -> Tensor:
    return torch.stack([KINDS[kind](row) for row in normal(fold(seed, size, torch.arange(rows)), size)])


def keys(count: int, seed: int = 0) -> Tensor:
    return fold(seed, "key", torch.arange(count))


def through(codec: Codec, parts: Rows, key: Tensor) -> Rows:
    return codec.carry(parts, codec.init(parts), key)[0]


def test_every_codec_is_here() -> None:
    """But for those of a handful of numbers, which have a length and no header: tests/test_scalar_codecs.py."""
    assert {part_name(codec) for codec in CODECS} == {name for name, kind in candidates(Codec).items() if not issubclass(kind, Scalars)}
    assert [line.split()[0] for line in listing("codec").splitlines() if line[0] != " "] == [*candidates(Codec)]


@EACH
@given(size=st.integers(2, 40), kind=KIND, seed=st.integers(0, 1000))
@settings(max_examples=6)
def test_it_contracts_or_is_unbiased_as_it_says(codec: Codec, size: int, kind: str, seed: int) -> None:
    """Over 500 keys: mean squared error within 1 - alpha or omega; the error of an unbiased mean has omega / 500 in the mean."""
    if isinstance(codec, Float16) and kind in ("small", "large") and codec.dtype == torch.float16:
        return  # beyond its range
    many, x = 500, drawn(1, size, kind, seed)
    back = through(codec, {"x": x.expand(many, -1)}, keys(many, seed))["x"]
    length, error = x.square().sum().double(), (back - x).double().square().sum(1).mean()
    alpha, omega = codec.alpha(size), codec.omega(size)
    slack = 1.5  # of a mean over keys
    if alpha is not None:
        assert error <= (1 - alpha) * length * (1.25 if isinstance(codec, RandK) else 1 + 1e-5)
    if omega is not None:
        assert error <= slack * omega * length + 1e-12 * length
        assert (back.double().mean(0) - x[0]).square().sum() <= 20 * omega / many * length + 1e-12 * length


@EACH
@given(rows=st.integers(1, 5), size=st.integers(2, 100), kind=KIND)
@settings(max_examples=6)
def test_rows_come_back_the_same_through_bytes_and_in_any_company(codec: Codec, rows: int, size: int, kind: str) -> None:
    parts, key = {"update": drawn(rows, size, kind), "other": drawn(rows, 6, "normal").view(rows, 2, 3)}, keys(rows)
    memory = codec.init(parts)
    wire = codec.encode(parts, memory, key)
    whole, after = codec.decode(wire, memory, key)
    assert {name: (part.shape, part.dtype) for name, part in whole.items()} == {
        name: (part.shape, part.dtype) for name, part in parts.items()
    }
    for i in range(rows):
        own = {name: part[i : i + 1] for name, part in memory.items()}
        alone = codec.encode({name: part[i : i + 1] for name, part in parts.items()}, own, key[i : i + 1])
        assert {name: part.tolist() for name, part in alone.items()} == {name: part[i : i + 1].tolist() for name, part in wire.items()}
        message = pack({name: part[0] for name, part in alone.items()})
        assert len(message) == row_bytes(wire)
        back, kept = codec.decode({name: part[None] for name, part in unpack(message).items()}, own, key[i : i + 1])
        assert all(torch.equal(back[name][0], part[i]) for name, part in whole.items())
        assert all(torch.equal(kept[name][0], part[i]) for name, part in after.items())


@pytest.mark.parametrize("codec", [codec for codec in CODECS if not isinstance(codec, Dense)], ids=repr)
def test_the_large_are_worked_on_in_pieces_that_change_nothing(codec: Codec) -> None:
    """131,077 numbers are several pieces alone, and more beside another row."""
    x, key = drawn(2, 131_077), keys(2)
    both = through(codec, {"x": x}, key)["x"]
    assert torch.equal(through(codec, {"x": x[1:]}, key[1:])["x"][0], both[1])


@EACH
def test_whole_and_single_numbers_travel_as_they_are(codec: Codec) -> None:
    parts = {
        "n": torch.arange(6).view(3, 2),
        "mass": torch.tensor([[0.25], [1.0], [2.0]]),
        "s": torch.tensor([1.0, 2.0, 4.0]),
        "of": torch.arange(3),
    }
    names = {
        "x of 7": torch.arange(6).view(3, 2),
        "x as is": torch.arange(3),
        "x at": torch.arange(3),
        "x of 2x2": drawn(3, 4).view(3, 2, 2),
    }
    parts |= names | {"x": drawn(3, 4)}
    back = through(codec, parts, keys(3))
    assert {name: (part.shape, part.dtype) for name, part in back.items()} == {
        name: (part.shape, part.dtype) for name, part in parts.items()
    }
    assert all(torch.equal(back[name], parts[name]) for name in parts if not name.startswith("x") or not parts[name].is_floating_point())


@EACH
def test_zeros_arrive_as_zeros_and_what_is_not_finite_as_not_finite(codec: Codec) -> None:
    x = torch.zeros(4, 20)
    x[1:] = drawn(3, 20)
    where = slice(None) if isinstance(codec, RandK) else slice(7, 8)  # what is sent
    x[2, where], x[3, where] = torch.nan, -torch.inf
    back = through(codec, {"x": x}, keys(4))["x"]
    assert (back[0] == 0).all()
    assert back.isfinite().all(1).tolist() == [True, True, False, False]
    assert not back[3, 7].isfinite()
