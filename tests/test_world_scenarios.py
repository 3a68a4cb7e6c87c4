"""The world's spellings, from the file to the numbers, and back to a file that runs anywhere."""

import json
import pickle
from pathlib import Path

import pytest

from fedsim.base.errors import ScenarioError
from fedsim.run.building import Tasks, build, check
from fedsim.scenario import describe, load, slots
from fedsim.settings.values import PerNode, Trace
from fedsim.world import Independent, Timetable

HEAD = "task: {data: digits, partition: {name: iid, nodes: 8}}\nstrategy: fedavg\nstop: {seconds: 1 min}\nworld:\n"


def written(folder: Path, world: str) -> Path:
    file = folder / "s.yaml"
    file.write_text(HEAD + world)
    return file


def test_traces_beside_the_scenario_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "devices").write_bytes(pickle.dumps({3: {"computation": 100.0, "communication": 800.0}}))
    (tmp_path / "behave.json").write_text(json.dumps({"7": {"active": [0], "inactive": [50], "finish_time": 100}}))
    world = (
        "  compute: {sample: {name: trace, file: devices, field: computation, unit: 3 ms}}\n"
        "  network: {up: {name: trace, file: devices, field: communication, unit: 1 kbit/s}}\n"
        "  availability: {name: trace, file: behave.json}\n"
    )
    [loaded] = load(written(tmp_path, world))
    fed = build(loaded, Tasks()).fed
    assert fed.nature.sample.tolist() == [fed.nature.per_second * 3 // 10] * 8
    assert fed.nature.up is not None and fed.nature.up.tolist() == [100_000] * 8
    assert [fed.nature.present(0, second * fed.nature.per_second).all() for second in (0, 50, 100)] == [True, False, True]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "again.yaml").write_text(loaded.resolved)
    monkeypatch.chdir(elsewhere)
    [again] = load("again.yaml")
    assert again.hash == loaded.hash
    assert build(again, Tasks()).fed.nature.sample.tolist() == fed.nature.sample.tolist()


def test_short_and_long_spellings(tmp_path: Path) -> None:
    world = (
        "  network: {loss: 1 %, server_down: 8 Mbit/s}\n  energy: {compute: 5 W, send: 250 mW}\n"
        "  availability: {name: timetable, joins: {4..7: 20 min}, leaves: {0: 40 min}}\n"
    )
    [loaded] = load(written(tmp_path, world), ["world.compute.jitter=exponential", "world.compute.jitter.mean=0.5"])
    found = loaded.scenario.world
    assert found.network.loss == Independent(PerNode(0.01))
    assert (found.network.server_down, found.energy and float(found.energy.send.value)) == (10**6, 0.25)  # type: ignore[arg-type]
    assert isinstance(found.availability, Timetable)
    assert (dict(found.availability.joins), dict(found.availability.leaves)) == ({"4..7": 1200}, {"0": 2400})
    (tmp_path / "again.yaml").write_text(loaded.resolved)
    assert load(tmp_path / "again.yaml")[0].scenario == loaded.scenario
    [none] = load(written(tmp_path, world), ["world.network.loss=none", "world.energy=none"])
    assert (none.scenario.world.network.loss, none.scenario.world.energy) == (None, None)


@pytest.mark.parametrize(
    ("world", "said"),
    [
        ("  network: {loss: 100 %}\n", "world.network.loss.chance: `100 %`: at least 0 % and at most 99.9 % is due"),
        ("  network: {loss: {name: gilbert_eliott}}\n", "did you mean `gilbert_elliott`?"),
        ("  network: {server_up: 3 MB}\n", "`3 MB` is a size; a rate is due: `3 MB/s`"),
        ("  energy: {compute: 5}\n", "`5` has no unit; a power is due: `5 W`"),
        ("  availability: {name: diurnal, share: 40 %, peak: 26 h}\n", "world.availability.peak"),
        ("  availability: {name: scheduled}\n", "unknown availability `scheduled`"),
        ("  availability: {name: markov, on: 1 h}\n", "world.availability.off: is needed"),
        ("  compute: {step: {name: pareto, least: 20 ms, shape: 0}}\n", "above 0 is due"),
        ("  compute: {step: {name: trace, file: x, field: y, unit: 3 kbit/s}}\n", "a time is due"),
        ("  compute: {bursts: {name: gilbert_elliott, enter: 4 %, leave: 60 %, slower: 0}}\n", "above 0 is due"),
    ],
)
def test_mistakes_name_their_place(tmp_path: Path, world: str, said: str) -> None:
    with pytest.raises(ScenarioError) as error:
        load(written(tmp_path, world))
    assert said in str(error.value)
    assert "s.yaml:5:" in str(error.value)


def test_mistakes_found_later_name_their_place_too(tmp_path: Path) -> None:
    (tmp_path / "gap.json").write_text(json.dumps({"7": {"active": [0, 60], "inactive": [50], "finish_time": 100}}))
    for world, key, said in (
        ("  availability: {name: trace, file: gap.json}\n", "world.availability", "gap.json: client `7`: 2 times in `active`, but 1"),
        ("  availability: {name: trace, file: none.json}\n", "world.availability", "no file `none.json`"),
        ("  availability: {name: timetable, joins: {4..9: 1 s}}\n", "world.availability", "`4..9` of 8 nodes"),
        ("  compute: {job: {name: trace, file: gap.json, field: x, unit: 1 s}}\n", "world.compute.job", "client `7`: no `x`"),
    ):
        [loaded] = load(written(tmp_path, world))
        [mistake] = check([loaded], Tasks()).values()
        assert mistake.key == key and said in mistake.message
        assert loaded.problem(mistake).line == 5


def test_everything_is_listed() -> None:
    for slot, names in (
        ("availability", ["always", "bernoulli", "diurnal", "markov", "timetable", "trace"]),
        ("spread", ["linear", "log_normal", "uniform", "pareto", "zipf", "trace"]),
        ("jitter", ["log_normal", "uniform", "exponential", "pareto"]),
        ("bursts", ["gilbert_elliott"]),
        ("packet_loss", ["independent", "gilbert_elliott"]),
        ("energy", ["standard"]),
    ):
        assert slot in slots()
        assert [part.name for part in describe(slot)] == names
    assert Trace.name == "trace"
