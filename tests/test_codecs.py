"""What travels: its size, half precision, and keys."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tools import Until, classification, durations, federation, models, quadratics, run, steps
from torch import Tensor

from fedsim.base.keys import uniform
from fedsim.base.rows import Rows
from fedsim.codecs import Codec, Float16, pack, row_bytes, unpack
from fedsim.federation.federation import Federation
from fedsim.schedule import Buffered
from strategies.fedavg import FedAvg

KEY = torch.zeros(1, dtype=torch.int64)

# Bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 0), (1000,)])
def test_the_size_of_a_row_is_that_of_its_message(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for names in (("update",), ("a", "second part"), tuple(f"part {i}" for i in range(12))):
        rows = {name: torch.ones(4, *shape).to(dtype) for name in names}
        message = pack({name: tensor[2] for name, tensor in rows.items()})
        assert row_bytes(rows) == len(message)
        assert len(message) % 8 == sum(tensor[0].nbytes for tensor in rows.values()) % 8  # the header is padded
        back = unpack(message)
        assert all(torch.equal(back[name], tensor[2]) and back[name].dtype == dtype for name, tensor in rows.items())


def test_the_size_does_not_depend_on_the_values_or_the_number_of_rows() -> None:
    sizes = {row_bytes({"x": rows}) for rows in (torch.zeros(1, 9), torch.full((5, 9), 1e30), torch.zeros(1, 9).expand(99, 9))}
    assert sizes == {len(pack({"x": torch.rand(9, generator=torch.Generator().manual_seed(0))}))}
    assert row_bytes({}) == 0


def test_parts_may_share_memory_and_be_views() -> None:
    x = torch.arange(12.0).view(3, 4)
    back = unpack(pack({"a": x, "b": x, "c": x.T, "d": x[:, 1:3], "e": x[:1].expand(5, 4)}))
    assert back["a"].tolist() == back["b"].tolist() == back["c"].T.tolist() == x.tolist()
    assert back["d"].tolist() == x[:, 1:3].tolist()
    assert back["e"].tolist() == [[0, 1, 2, 3]] * 5


def test_half_precision_halves_the_numbers() -> None:
    rows = {"x": torch.zeros(2, 1000), "n": torch.zeros(2, 3, dtype=torch.int64)}
    assert row_bytes(rows) - row_bytes(Float16().encode(rows, {}, KEY)) == 2000


# Half precision


@given(st.floats(-65_000, 65_000, width=32))
def test_half_precision_rounds_to_the_nearest(value: float) -> None:
    """numpy's float16 is the reference; 11 bits of significand, and steps of 2^-24 near zero."""
    rows = {"x": torch.tensor([[value]])}
    back, memory = Float16().decode(Float16().encode(rows, {}, KEY), {}, KEY)
    assert back["x"].dtype == torch.float32
    assert back["x"].item() == float(np.float16(np.float32(value)))
    assert abs(back["x"].item() - value) <= max(abs(value) * 2**-11, 2**-25)
    assert memory == {}
    again = Float16().encode(back, {}, KEY)
    assert torch.equal(Float16().decode(again, {}, KEY)[0]["x"], back["x"])


def test_half_precision_has_ends_and_leaves_whole_numbers() -> None:
    rows = {"x": torch.tensor([[65_504.0, 65_536.0, -1e30, 2**-24, 2**-26]]), "n": torch.tensor([[2**40]]), "b": torch.tensor([[True]])}
    back, _ = Float16().decode(Float16().encode(rows, {}, KEY), {}, KEY)
    assert back["x"].tolist() == [[65_504, torch.inf, -torch.inf, 2**-24, 0]]
    assert back["n"].tolist() == [[2**40]]
    assert back["b"].tolist() == [[True]]


def test_half_precision_up_and_down_by_hand() -> None:
    """One client, one step: what is heard and what is sent are rounded."""
    task = classification([6], features=2, classes=2)
    codec, strategy = Float16(), FedAvg(train=steps(lr=0.3))
    plain = run(task, strategy, 1)
    up, both = run(task, replace(strategy, uplink=codec), 1), run(task, replace(strategy, uplink=codec, downlink=codec), 1)
    sent = (plain.state["model"] - task.init).half().float()
    assert (models(up)[1] - task.init - sent).abs().max() < 1e-7
    heard = replace(task, init=task.init.half().float())
    moved = run(heard, strategy, 1).state["model"] - heard.init
    assert (models(both)[1] - task.init - moved.half().float()).abs().max() < 1e-7
    assert (up.ledger.bytes_up, up.ledger.bytes_down) == (row_bytes({"update": sent.half()}), row_bytes({"model": sent}))
    assert both.ledger.bytes_down == row_bytes({"model": sent.half()})


# Keys


@dataclass(frozen=True)
class Dither(Codec):
    """Adds keyed noise; without memory."""

    def encode(self, parts: Rows, memory: Rows, key: Tensor) -> Rows:
        return {name: rows + uniform(key, rows.shape[1]).to(rows) for name, rows in parts.items()}


@dataclass
class Often(Until):
    """Evaluates at each multiple of some ticks, which must change nothing."""

    every: int = 10**8
    rounds: int | None = 8
    versions: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.rounds)
        self.due = self.every

    def evaluate(self, fed: Federation) -> None:
        self.due += self.every


def test_noise_of_a_broadcast_is_that_of_its_version_however_often_is_evaluated() -> None:
    strategy = FedAvg(train=steps(lr=0.5), schedule=Buffered(size=4), downlink=Dither(), uplink=Dither())
    args = (quadratics([1.0, 2, 3, 4, 5, 6]), strategy, 8, durations("1", "1.1", "1.2", "1.3", "1.4", "1.5"))
    plain, often = federation(*args), federation(*args)
    often.watch = Often()
    plain.run()
    often.run()
    assert torch.equal(models(plain), models(often))
    other = run(*args, seed=1)
    assert not torch.equal(models(plain)[1], models(other)[1])
