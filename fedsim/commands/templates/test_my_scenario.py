"""my_scenario.yaml: it loads, and runs at smoke size to the same model each time."""

from pathlib import Path

from fedsim.run.building import Tasks, build
from fedsim.scenario import load

SCENARIO = Path(__file__).with_name("my_scenario.yaml")


def test_every_run_loads() -> None:
    runs = load(SCENARIO)
    assert len(runs) == 12 and len({run.hash for run in runs}) == 12


def test_the_same_bits_each_time(tmp_path: Path) -> None:
    [first, *_] = load(SCENARIO, ["track=none"], smoke=True)
    infos = [build(first, Tasks()).execute(tmp_path / name) for name in ("once", "again")]
    assert [info["status"] for info in infos] == ["finished", "finished"]
    assert infos[0]["model"] == infos[1]["model"]
