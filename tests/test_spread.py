"""How values differ over nodes, against the distributions' closed forms; traces in FedScale's formats, and what is wrong with some."""

import json
import pickle
from fractions import Fraction
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.settings.traces import lots, read_trace, stays
from fedsim.settings.values import Pareto, PerNode, Population, Trace, Zipf
from fedsim.world import Compute, Nature, Network, World

CERTAIN = 4.5  # standard deviations


def test_pareto_has_its_tail() -> None:
    nodes, shape = 20_000, 2.5
    values = Pareto(Fraction(1, 50), shape).floats(range(nodes), fold(0, "x"))
    assert values.min() >= 0.02
    for above in (0.03, 0.05, 0.2):
        share = (0.02 / above) ** shape
        assert abs((values > above).mean() - share) < CERTAIN * sqrt(share * (1 - share) / nodes)
    assert abs(np.log(values / 0.02).mean() - 1 / shape) < CERTAIN / shape / sqrt(nodes)  # exponential in the logarithm
    assert np.isfinite(Pareto(1.0, 0.001).floats(range(100), fold(0, "x"))).all()


def test_zipf_is_exact_by_rank() -> None:
    values = Zipf(Fraction(12), 1.0).floats(range(4), fold(0, "x"))
    assert sorted(values, reverse=True) == [12, 6, 4, 3]
    assert len({tuple(Zipf(1.0, 2.0).floats(range(4), fold(seed, "x"))) for seed in range(9)}) > 1  # the order is drawn


DEVICES = {7: {"computation": 162.0, "communication": 5648.0}, 9: {"computation": 20.0, "communication": 800.0}}


@pytest.fixture(params=["pickle", "json"])
def devices(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return write(tmp_path, DEVICES, request.param)


def write(folder: Path, content: Any, kind: str = "json") -> str:
    file = folder / f"trace.{kind}"
    file.write_bytes(json.dumps(content).encode() if kind == "json" else pickle.dumps(content))
    return str(file)


def test_devices_compute_and_send_as_fedscale_measures_them(devices: str) -> None:
    """3 x samples x computation / 1000 seconds of work, bytes x 8 / (communication x 1000) of travel, both of one device."""
    world = World(
        Compute(sample=PerNode(Trace(devices, "computation", Fraction(3, 1000)))),
        Network(up=PerNode(Trace(devices, "communication", Fraction(125)))),
    )
    of = Nature(world, Population(6), 0, 10**9)
    nodes, ones = np.arange(6), np.ones(6, dtype=np.int64)
    times = of.times(nodes, of.work(nodes, ones, 10 * ones), ones, 1000 * ones)
    found = [(work / 1e9, up / 1e9) for work, up in zip(times.work.tolist(), times.up.tolist(), strict=True)]
    expected = [(3 * 10 * d["computation"] / 1000, 1000 * 8 / (d["communication"] * 1000)) for d in DEVICES.values()]
    for block in range(3):  # each device once before any again
        assert np.allclose(sorted(found[2 * block : 2 * block + 2]), sorted(expected), rtol=0, atol=1e-9)


def test_lots_are_permutations_of_the_clients() -> None:
    taken = lots("a/file", 0, 5, range(23))
    for first in range(0, 20, 5):
        assert sorted(taken[first : first + 5]) == [0, 1, 2, 3, 4]
    assert len(set(taken[20:].tolist())) == 3
    assert lots("elsewhere/file", 0, 5, range(7, 9)).tolist() == taken[7:9].tolist()
    assert lots("a/file", 1, 5, range(23)).tolist() != taken.tolist()


def entry(**changes: Any) -> dict[str, Any]:
    return {"duration": 30, "active": [10, 40], "inactive": [20, 60], "finish_time": 100, "model": "X"} | changes


def test_stays_of_an_availability_trace(tmp_path: Path) -> None:
    content = {"a": entry(), "b": entry(active=[], inactive=[]), "c": entry(active=[0, 5, 9, 30], inactive=[5, 8, 9, 100])}
    found = stays(write(tmp_path, content, "pickle"))
    assert found.start.tolist() == [10, 40, 0, 30]  # what touches is one stay, what is empty none
    assert found.end.tolist() == [20, 60, 8, 100]
    assert found.first.tolist() == [0, 2, 2, 4]
    assert found.period.tolist() == [100, 100, 100]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inactive": [20]}, "2 times in `active`, but 1 in `inactive`: the trace has a gap"),
        ({"active": [10, 15]}, "it is active at 15 s, before 20 s when it was last inactive"),
        ({"active": [30, 40]}, "it is inactive at 20 s, before it is active at 30 s"),
        ({"active": [-1, 40]}, "`active` has -1; times of 0 or more are due"),
        ({"active": [float("nan"), 40]}, "`active` has nan"),
        ({"inactive": [20, "60"]}, "`inactive` has '60'"),
        ({"finish_time": 50}, "it is inactive at 60 s, after its `finish_time` of 50 s"),
        ({"finish_time": 0}, "`finish_time` is 0; a number above 0 is due"),
        ({"active": 3}, "`active` is no list"),
    ],
)
def test_a_trace_with_gaps_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    file = write(tmp_path, {"fine": entry(), "bad": entry(**changes)}, "pickle")
    with pytest.raises(ValueError, match=r"trace\.pickle: client `bad`: ") as error:
        stays(file)
    assert said in str(error.value)


def test_devices_without_a_number_are_refused(tmp_path: Path) -> None:
    for content, said in (
        ({"a": {"speed": 1}}, "client `a`: no `computation`; it has speed"),
        ({"a": {"computation": -2}}, "client `a`: `computation` is -2; a number above 0 is due"),
        ({"a": {"computation": True}}, "is True"),
        ({}, "a mapping of clients is due"),
        ([1], "a mapping of clients is due"),
    ):
        world = World(Compute(sample=PerNode(Trace(write(tmp_path, content), "computation", Fraction(1)))))
        with pytest.raises(SettingError, match=r"^world\.compute\.sample: ") as error:
            Nature(world, Population(2), 0, 10**9)
        assert said in str(error.value)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


def test_no_code_is_run_and_no_rubbish_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in (pickle.dumps({"a": Evil()}), pickle.dumps(DEVICES)[:-5], b"", b"{broken", b"\x80\x04\xff\xff"):
        (tmp_path / "trace").write_bytes(content)
        with pytest.raises(ValueError, match="can't be read as JSON or as a plain pickle"):
            read_trace(str(tmp_path / "trace"))
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="no file `nowhere`: looked for beside the scenario"):
        read_trace("nowhere")
