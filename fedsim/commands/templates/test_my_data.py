"""my_data: what the function returns, and its scenario."""

from pathlib import Path

import numpy as np
from my_data import load

from fedsim.run.building import Tasks, build
from fedsim.scenario import load as read


def test_arrays() -> None:
    found = load(samples=90)
    assert found["x"].shape == (90, 4) and found["y"].shape == found["ward"].shape == (90,)
    assert set(found["y"]) == {0, 1, 2} and set(found["ward"]) == set(range(6))
    assert np.isfinite(found["x"]).all()


def test_the_same_each_time() -> None:
    assert all(np.array_equal(array, load(90)[name]) for name, array in load(90).items())
    assert not np.array_equal(load(90)["x"], load(90, seed=1)["x"])


def test_the_scenario_runs_with_a_node_a_ward(tmp_path: Path) -> None:
    [first] = read(Path(__file__).with_name("my_data.yaml"), ["track=none", "sweep=null"], smoke=True)
    info = build(first, Tasks()).execute(tmp_path / "run")
    assert (info["status"], info["nodes"]) == ("finished", 6)
