"""Top-k and EF21: contraction, ties, exact bytes, and what error feedback reaches."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tools import classification, durations, events, models, quadratics, run, steps

from fedsim.base.keys import fold, normal
from fedsim.base.rows import Rows
from fedsim.codecs import Codec, Ef21, Float16, Identity, RandK, Threshold, TopK, pack, row_bytes, unpack
from fedsim.schedule import Buffered, Rounds
from fedsim.settings.values import Count
from strategies.fedavg import FedAvg

KEY = torch.zeros(1, dtype=torch.int64)


def through(codec: Codec, parts: Rows) -> Rows:
    return codec.decode(codec.encode(parts, {}, KEY), {}, KEY)[0]


def drawn(rows: int, size: int) -> torch.Tensor:
    return normal(fold(size, torch.arange(rows)), size)


# Top-k


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.integers(1, 40))
def test_the_greatest_are_kept_and_of_equal_ones_the_first(numbers: list[int], count: int) -> None:
    """A stable sort by falling size is the reference."""
    count = min(count, len(numbers))
    kept = sorted(range(len(numbers)), key=lambda at: -abs(numbers[at]))[:count]
    back = through(TopK(count=count), {"x": torch.tensor([numbers], dtype=torch.float32)})["x"]
    assert back.tolist() == [[float(n) if at in kept else 0.0 for at, n in enumerate(numbers)]]


@pytest.mark.parametrize(("size", "count"), [(10, 1), (10, 4), (10, 9), (64, 3), (65, 3), (1000, 10), (1000, 300), (2, 1)])
def test_a_round_trip_through_bytes_contracts(size: int, count: int) -> None:
    """|C(v) - v|^2 <= (1 - k/d) |v|^2, and what is left out is exactly the rest."""
    codec, rows = TopK(count=count), drawn(5, size)
    wire = codec.encode({"x": rows}, {}, KEY)
    sent = [unpack(pack({name: part[i : i + 1] for name, part in wire.items()})) for i in range(5)]
    back = codec.decode({name: torch.cat([one[name] for one in sent]) for name in wire}, {}, KEY)[0]["x"]
    assert ((back == 0) | (back == rows)).all() and ((back != 0).sum(1) == count).all()
    assert ((back - rows).square().sum(1) <= (1 - count / size) * rows.square().sum(1) * (1 + 1e-6)).all()


@pytest.mark.parametrize(("size", "count"), [(1000, 10), (1000, 99), (1000, 100), (1000, 500), (650, 33)])
def test_bytes_are_those_of_numbers_and_places(size: int, count: int) -> None:
    """ceil(log2 d) bits a place, or d bits where that is less."""
    wire = TopK(count=count).encode({"x": drawn(3, size)}, {}, KEY)
    places = math.ceil(min(count * math.ceil(math.log2(size)), size) / 8)
    assert sum(part[0].nbytes for part in wire.values()) == 4 * count + places
    assert row_bytes(wire) == len(pack({name: part[0] for name, part in wire.items()}))


def test_shapes_types_and_names_come_back() -> None:
    parts = {
        "a of 3": drawn(4, 12).view(4, 3, 4),
        "b": drawn(4, 6).double(),
        "n": torch.arange(4),
        "m": torch.arange(8).view(4, 2),
        "s": drawn(4, 1)[:, 0],
    }
    back = through(TopK(fraction=0.5), parts)
    assert {name: (rows.shape, rows.dtype) for name, rows in back.items()} == {
        name: (rows.shape, rows.dtype) for name, rows in parts.items()
    }
    assert all(torch.equal(back[name], parts[name]) for name in ("n", "m", "s"))
    assert [int((back[name] != 0).sum()) for name in ("a of 3", "b")] == [24, 12]


def test_how_many() -> None:
    assert [TopK().kept(size) for size in (1, 50, 100, 101, 7850)] == [1, 1, 1, 2, 79]
    assert [TopK(fraction=0.3).kept(10), TopK(fraction=1.0).kept(7), TopK(count=5).kept(5)] == [3, 7, 5]
    with pytest.raises(ValueError, match="exclude each other"):
        TopK(fraction=0.1, count=1)


def test_what_is_not_finite_goes_first() -> None:
    back = through(TopK(count=2), {"x": torch.tensor([[1.0, torch.nan, 5.0, -torch.inf]])})["x"]
    assert back[0, 0] == 0 and back[0, 1].isnan() and back[0, 2] == 0 and back[0, 3] == -torch.inf


def test_rows_do_not_depend_on_each_other() -> None:
    rows = drawn(6, 37)
    alone = torch.cat([through(TopK(count=5), {"x": row[None]})["x"] for row in rows])
    assert torch.equal(through(TopK(count=5), {"x": rows})["x"], alone)


# EF21


@pytest.mark.parametrize(("size", "count"), [(10, 3), (12, 4), (7, 7), (5, 1)])
def test_something_constant_is_known_after_as_many_messages_as_it_takes(size: int, count: int) -> None:
    codec, x = Ef21(TopK(count=count)), {"x": torch.arange(1.0, size + 1)[None]}
    memory, needed = codec.init(x), math.ceil(size / count)
    for turn in range(1, needed + 1):
        back, memory = codec.decode(codec.encode(x, memory, KEY), memory, KEY)
        assert torch.equal(back["x"], memory["known x"])
        assert torch.equal(back["x"], x["x"]) == (turn == needed)


def test_ef21_of_everything_is_plain() -> None:
    """On numbers that are short in binary, where g + (x - g) is x."""
    task = quadratics([[8.0, 1.0], [-3.5, 2.0], [2.25, -1.0]])
    train, schedule = steps(1, 0.5), Rounds(cohort=Count())
    plain, all_of_it = (
        run(task, FedAvg(train=train, schedule=schedule, uplink=codec), 6) for codec in (Identity(), Ef21(TopK(fraction=1.0)))
    )
    assert torch.allclose(models(plain), models(all_of_it), rtol=0, atol=1e-15)


def test_ef21_is_the_plain_loop() -> None:
    """g_i += Top1(u_i - g_i), x += mean g_i, over two nodes with two coordinates each."""
    b = [[8.0, 3.0], [-2.0, 5.0]]
    strategy = FedAvg(train=steps(1, 0.5), schedule=Rounds(cohort=Count()), uplink=Ef21(TopK(count=1)))
    fed = run(quadratics(b), strategy, 7)
    x, g, path = [0.0, 0.0], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0]]
    for _ in range(7):
        for i in range(2):
            change = [0.5 * (b[i][j] - x[j]) - g[i][j] for j in range(2)]
            top = 0 if abs(change[0]) >= abs(change[1]) else 1
            g[i][top] += change[top]
        x = [x[j] + (g[0][j] + g[1][j]) / 2 for j in range(2)]
        path.append(x)
    assert models(fed)[:, 0].tolist() == path


def test_ef21_reaches_what_plain_top_k_misses() -> None:
    """Two opposite nodes: the optimum is a fixed point of EF21; Top1 alone cancels one coordinate and never moves along the other."""
    task = quadratics([[10.0, 1.0], [-10.0, 1.0]])
    last = {}
    for name, codec in {"ef21": Ef21(TopK(count=1)), "topk": TopK(count=1)}.items():
        fed = run(task, FedAvg(train=steps(1, 0.125), schedule=Rounds(cohort=Count()), uplink=codec), 200)
        last[name] = fed.state["model"][0].tolist()
    assert last["topk"] == [0.0, 0.0]
    assert last["ef21"] == pytest.approx([0.0, 1.0], abs=1e-6)


def test_codecs_wrap_codecs() -> None:
    """A wrapped codec with memory has its own; half precision inside rounds the change."""
    nested, x = Ef21(Ef21(Float16())), {"x": drawn(2, 4)}
    memory = nested.init(x)
    assert set(memory) == {"known x", "inner known x"}
    back, memory = nested.decode(nested.encode(x, memory, KEY), memory, KEY)
    assert torch.equal(back["x"], x["x"].half().float()) and torch.equal(memory["inner known x"], back["x"])


def test_bytes_and_time_of_a_run() -> None:
    strategy = FedAvg(train=steps(1), schedule=Buffered(2), uplink=Ef21(TopK(count=2)))
    fed = run(classification([4, 5, 6]), strategy, 5, world=durations(1, "1.3", "1.7"))
    size = row_bytes(TopK(count=2).encode({"update": fed.state["model"]}, {}, KEY))
    assert set(events(fed, "arrival")["bytes_up"].tolist()) == {size}
    assert size < row_bytes({"update": fed.state["model"]})


# By threshold and by lot


def test_what_is_smaller_than_the_threshold_arrives_as_zero_at_the_same_price() -> None:
    x = torch.tensor([[3.0, -0.5, 0.25, -2.0, 1.0, 0.0]])
    codec = Threshold(count=3, least=1.5)
    assert through(codec, {"x": x})["x"].tolist() == [[3.0, 0.0, 0.0, -2.0, 0.0, 0.0]]
    assert through(Threshold(count=1, least=1.5), {"x": x})["x"].tolist() == [[3.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    assert through(Threshold(fraction=1.0, least=0.5), {"x": x})["x"].tolist() == [[3.0, -0.5, 0.0, -2.0, 1.0, 0.0]]
    assert {row_bytes(codec.encode({"x": rows}, {}, KEY)) for rows in (x, 0 * x)} == {row_bytes(TopK(count=3).encode({"x": x}, {}, KEY))}


def test_a_lot_needs_no_places_and_leaves_none_out() -> None:
    keys, x = fold(3, torch.arange(4000)), torch.arange(1.0, 11)[None]
    wire = RandK(count=3, scaled=False).encode({"x": x.expand(4000, -1)}, {}, keys)
    assert {name: part.shape[1:] for name, part in wire.items()} == {"x of 10": torch.Size([3])}
    assert (wire["x of 10"].diff(dim=1) > 0).all()  # none twice
    often = torch.bincount(wire["x of 10"].long().flatten(), minlength=11)[1:] / 4000
    assert (often - 0.3).abs().max() < 0.03
    back = RandK(count=3).decode(wire, {}, keys)[0]["x"]
    assert torch.equal(back[back != 0].view(4000, 3), wire["x of 10"] * (10 / 3))
