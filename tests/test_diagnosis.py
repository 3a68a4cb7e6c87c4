"""Where time goes, by hand: a world of three nodes with known times, and the same in pieces of any size."""

from pathlib import Path

import numpy as np
import pytest
from folders import Row, row, write_run

from fedsim.report import diagnosis
from fedsim.report.diagnosis import Diagnosis, diagnose
from fedsim.report.figures.plots import draw
from fedsim.report.inspection import inspect_run
from fedsim.run.folders import RunFolder


def a_round(start: int, works: tuple[int, ...], version: int, travel: int = 500) -> list[Row]:
    """Milliseconds: each node gets a model for `travel`, works, and sends it back; then all are merged."""
    jobs = [len(works) * (version - 1) + node for node in range(len(works))]
    rows = [
        row(start, "dispatch", node, job, down=travel, work=work, up=travel)
        for node, (job, work) in enumerate(zip(jobs, works, strict=True))
    ]
    ends = sorted((start + 2 * travel + work, node) for node, work in enumerate(works))
    rows += [row(at, "arrival", node, jobs[node]) for at, node in ends]
    return rows + [row(ends[-1][0], "merge", node, job, version, staleness=0) for node, job in enumerate(jobs)]


def found(folder: Path, rows: list[Row], nodes: int = 3, **info: object) -> Diagnosis:
    seconds = max(event["time"] for event in rows) / 1000
    result = diagnose(RunFolder(write_run(folder, rows, [{"round": 1, "time/seconds": seconds}], nodes=nodes, **info)))
    assert result is not None
    return result


ROUNDS = [*a_round(0, (1000, 2000, 5000), 1), *a_round(6000, (1000, 3000, 2000), 2)]  # 6 s and 4 s


def by_hand(one: Diagnosis) -> None:
    assert (one.work, one.transfer, one.wait, one.lost) == (14.0, 6.0, (4 + 3 + 0) + (2 + 0 + 1), 0.0)
    assert one.effective == 14 / 30
    assert one.rounds == 2 and one.waits.tolist() == [0, 1, 1] and one.alone.tolist() == [0.0, 1.0, 3.0]
    assert one.top(5) == [(2, 0.5, 3.0), (1, 0.5, 1.0)]
    assert one.saved == 4.0 and one.faster == 10 / 6


@pytest.mark.parametrize("events", [1, 2, 5, 1000])
def test_three_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: int) -> None:
    monkeypatch.setattr(diagnosis, "EVENTS", events)
    by_hand(found(tmp_path / "streamed", ROUNDS))
    run = RunFolder(write_run(tmp_path / "read", ROUNDS, [{"round": 1, "time/seconds": 10.0}], nodes=3))
    assert len(run.columns["time"]) == len(ROUNDS)  # from now on in memory
    result = diagnose(run)
    assert result is not None
    by_hand(result)


def test_slowness_is_against_all_jobs_of_the_stretch(tmp_path: Path) -> None:
    """Jobs of 1, 2 and 4 s: a half, one and two times the geometric mean, slowest first; in the second round all are alike."""
    rows = [*a_round(0, (1000, 2000, 4000), 1, 0), *a_round(4000, (3000, 3000, 3000), 2, 0)]
    nodes, map_ = found(tmp_path, rows).slowness(3)
    assert [one.tolist() for one in nodes] == [[2], [1], [0]]
    assert np.allclose(map_[:, 0], [1, 0, -1])
    assert np.allclose(map_[:, int(4 / 7 * diagnosis.STRETCHES)], 0)
    assert np.isnan(map_).sum() == map_.size - 6
    two, _ = found(tmp_path / "two", rows).slowness(2)
    assert [one.tolist() for one in two] == [[1, 2], [0]]


def test_dropped_jobs_are_lost_and_a_clock_is_waited_for_by_nobody(tmp_path: Path) -> None:
    """Node 0 is merged with node 1 by a clock at 5 s, node 2 dropped then."""
    rows = [row(0, "dispatch", node, node, work=work) for node, work in enumerate((1000, 3000, 9000))]
    rows += [row(1000, "arrival", 0, 0), row(3000, "arrival", 1, 1), row(5000, "drop", 2, 2)]
    rows += [row(5000, "merge", node, node, 1, staleness=0) for node in (0, 1)]
    one = found(tmp_path, rows)
    assert (one.work, one.wait, one.lost, one.rounds, one.waits.sum(), one.saved) == (4.0, 6.0, 5.0, 1, 0, 0.0)


def test_who_starts_again_before_the_merge_waits_no_longer(tmp_path: Path) -> None:
    """A buffer of two: node 0 sends at 1 s, starts again at 2 s; both first updates are merged at 4 s, its second is stale by then."""
    rows = [row(0, "dispatch", 0, 0, work=1000), row(0, "dispatch", 1, 1, work=4000), row(1000, "arrival", 0, 0)]
    rows += [row(2000, "dispatch", 0, 2, work=4000), row(4000, "arrival", 1, 1)]
    rows += [row(4000, "merge", node, job, 1, staleness=0) for node, job in ((0, 0), (1, 1))]
    rows += [row(4000, "dispatch", 1, 3, work=4000), row(6000, "arrival", 0, 2), row(8000, "arrival", 1, 3)]
    rows += [row(8000, "merge", node, job, 2, staleness=stale) for node, job, stale in ((0, 2, 1), (1, 3, 0))]
    one = found(tmp_path, rows)
    assert (one.work, one.wait) == (13.0, 1.0 + 2.0)
    assert one.waits.tolist() == [0, 2, 0] and one.saved is None and one.faster is None


def test_where_nothing_takes_time_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert diagnose(RunFolder(write_run(tmp_path, a_round(0, (0, 0), 1, 0), [], nodes=2))) is None


def test_a_log_that_is_too_large_to_be_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checks and the picture of work are left out; what is told as events pass is told."""
    monkeypatch.setattr("fedsim.report.inspection.MOST", len(ROUNDS) - 1)
    monkeypatch.setattr("fedsim.report.figures.plots.MOST", len(ROUNDS) - 1)
    run = RunFolder(write_run(tmp_path, ROUNDS, [{"round": 2, "time/seconds": 10.0}], nodes=3))
    text, good = inspect_run(run)
    words = " ".join(text.split())
    assert good and "effective 47 % of 30 s of clients' time: work 14 s, transfer 6 s, waiting 10 s" in words
    assert "checks left out: 18 events are more than the 17 that are read at once" in words
    assert [file.name for file in draw([run]) if file.name in ("gantt.png", "waits.png")] == ["waits.png"]
    assert "columns" not in run.__dict__
