from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import row, simulate, table, write_run

from fedsim.report.checks import ARRIVAL, DISPATCH, DROP, EVALUATE, MERGE, check_events
from fedsim.report.inspection import _energy, _quality, _target, inspect_run, wasted_work
from fedsim.run.folders import Columns, RunFolder, columns_of
from fedsim.run.runfolder import RunWriter

NAMES = ["clock", "arrivals", "ends", "jobs", "concurrency", "merges", "staleness", "bytes"]
Change = Callable[[Columns], None]


def log() -> tuple[Columns, list[dict[str, Any]]]:
    """Five nodes of unequal speed, merges of two, every seventh job lost."""
    rows, records = simulate([500, 430, 370, 310, 205], 2, 5000, 1000, 7)
    return columns_of(table(rows)), records


def failed(columns: Columns, records: list[dict[str, Any]], concurrency: int | None = 5) -> list[str]:
    return [check.name for check in check_events(columns, {"concurrency": concurrency, "final": records[-1]}, records) if not check.ok]


def test_a_true_log_passes() -> None:
    columns, records = log()
    checks = check_events(columns, {"concurrency": 5}, records)
    assert [check.name for check in checks] == NAMES
    assert all(check.ok for check in checks)
    assert {len(columns["kind"] == kind) > 0 for kind in (DISPATCH, ARRIVAL, DROP, MERGE, EVALUATE)} == {True}
    assert (columns["kind"] == DROP).sum() > 3
    assert columns["staleness"].max() >= 3


def test_concurrency_is_checked_where_there_is_a_limit() -> None:
    columns, records = log()
    assert failed(columns, records, 4) == ["concurrency"]
    assert "concurrency" not in [check.name for check in check_events(columns, {}, records)]


def test_staleness_is_held_against_the_bound_where_one_was_promised() -> None:
    columns, records = log()
    most = int(columns["staleness"].max())
    said = {limit: check_events(columns, {"max_staleness": limit}, records) for limit in (most, most - 1)}
    assert all(check.ok for check in said[most])
    [bad] = [check for check in said[most - 1] if not check.ok]
    assert bad.name == "staleness" and f"staleness {most}; the limit is {most - 1}" in bad.detail


def one(columns: Columns, kind: int, place: int = 3) -> int:
    return int(np.flatnonzero(columns["kind"] == kind)[place])


def later(columns: Columns) -> None:
    columns["time"][one(columns, EVALUATE, 1)] -= 700


def other(name: str, kind: int, change: int) -> Change:
    def corrupt(columns: Columns) -> None:
        columns[name][one(columns, kind)] += change

    return corrupt


def end_again(columns: Columns) -> None:
    """An evaluation becomes a second drop of a job that has arrived."""
    arrival, evaluation = one(columns, ARRIVAL, 0), one(columns, EVALUATE, 4)
    columns["kind"][evaluation], columns["job"][evaluation] = DROP, columns["job"][arrival]
    columns["node"][evaluation] = 99


def busy_node(columns: Columns) -> None:
    """The second job is said to be node 0's, which is at work."""
    for kind in (DISPATCH, ARRIVAL, DROP):
        columns["node"][(columns["kind"] == kind) & (columns["job"] == 1)] = 0


def merged_in_flight(columns: Columns) -> None:
    """A merge is said to be of a job of the same version that has not arrived yet."""
    merges, sent, came = (np.flatnonzero(columns["kind"] == kind) for kind in (MERGE, DISPATCH, ARRIVAL))
    arrival = {int(columns["job"][at]): int(at) for at in came}
    version = {int(columns["job"][at]): int(columns["version"][at]) for at in sent}
    at, job = next(
        (at, job)
        for at in merges
        for job in version
        if version[job] == version[int(columns["job"][at])] and arrival.get(job, len(columns["kind"])) > at
    )
    columns["job"][at] = job


@pytest.mark.parametrize(
    ("corrupt", "check"),
    [
        (later, "clock"),
        (other("down", DISPATCH, 1), "arrivals"),
        (other("work", DISPATCH, -1), "arrivals"),
        (other("up", DISPATCH, 2), "arrivals"),
        (other("node", ARRIVAL, 40), "arrivals"),
        (other("staleness", MERGE, 1), "staleness"),
        (other("staleness", MERGE, -50), "staleness"),
        (other("version", MERGE, 1), "staleness"),
        (other("bytes_up", ARRIVAL, -1), "bytes"),
        (other("bytes_down", DISPATCH, 1), "bytes"),
        (other("bytes_up", EVALUATE, 7), "bytes"),
        (other("job", MERGE, 10_000), "merges"),
        (merged_in_flight, "merges"),
        (busy_node, "jobs"),
    ],
)
def test_one_corrupted_column_fails_its_check_alone(corrupt: Change, check: str) -> None:
    columns, records = log()
    columns = {name: values.copy() for name, values in columns.items()}
    corrupt(columns)
    assert failed(columns, records) == [check]


def test_a_job_that_ends_twice() -> None:
    columns, records = log()
    columns = {name: values.copy() for name, values in columns.items()}
    end_again(columns)
    assert failed(columns, records[:4]) == ["ends"]


def test_details_tell_of_the_first_failure() -> None:
    rows = [
        row(0, "dispatch", 0, 0, 0, down=1, work=5, up=1, bytes_down=8),
        row(9, "arrival", 0, 0, 0, bytes_up=4),
        row(9, "merge", 0, 0, 1, staleness=2),
        row(8, "evaluate", version=1),
    ]
    final = {"round": 1, "traffic/bytes_down": 8, "traffic/bytes_up": 5, "traffic/bytes_cross": 0}
    details = {check.name: check.detail for check in check_events(columns_of(table(rows)), {"final": final})}
    assert details == {
        "clock": "event 3 is at tick 8, after tick 9",
        "arrivals": "job 0 of node 0 arrived at tick 9; its dispatch and parts give 7",
        "ends": "",
        "jobs": "",
        "merges": "",
        "staleness": "job 0 is logged with staleness 2; its versions give 0",
        "bytes": "4 bytes up in the events, 5 in the metrics of round 1",
    }


def test_bytes_between_peers_are_those_of_mixing() -> None:
    rows = [row(0, "mix", 0, version=1, bytes_down=3, bytes_up=3), row(0, "evaluate", version=1)]
    final = {"round": 1, "traffic/bytes_down": 0, "traffic/bytes_up": 0, "traffic/bytes_cross": 6}
    assert all(check.ok for check in check_events(columns_of(table(rows)), {"final": final}))


def test_an_empty_log_passes_and_an_empty_merge_is_no_job() -> None:
    assert all(check.ok for check in check_events(columns_of(table([])), {"concurrency": 1}))
    rows = [row(5, "merge", version=1), row(5, "evaluate", version=1)]
    assert all(check.ok for check in check_events(columns_of(table(rows)), {"final": {"round": 1}}))


def test_wasted_work_is_time_up_to_the_drop() -> None:
    rows = [
        row(0, "dispatch", 0, 0, down=10, work=60, steps=1),
        row(0, "dispatch", 1, 1, down=10, work=60, steps=3),
        row(30, "drop", 1, 1),  # 20 of its 60 ticks of work were done
        row(70, "arrival", 0, 0),
    ]
    assert wasted_work(columns_of(table(rows))) == 20 / 80
    no_time = [event | {"time": 0, "down": 0, "work": 0} for event in rows]
    assert wasted_work(columns_of(table(no_time))) == 3 / 4


def test_inspect_says_how_it_ended_what_it_cost_and_whether_it_holds(tmp_path: Path) -> None:
    rows, records = simulate([300, 200], 1, 2000, 1000, 4)
    info = {"status": "finished", "reason": "accuracy 95 %", "concurrency": 2}
    text, ok = inspect_run(RunFolder(write_run(tmp_path / "true", rows, records, **info)))
    up, down = (records[-1][f"traffic/bytes_{way}"] for way in ("up", "down"))
    updates, cut = records[-1]["work/updates"], records[-1]["work/dropped"]
    lines = text.splitlines()
    assert ok
    assert lines[0] == f"  finished (accuracy 95 %)  round {updates}  2 s  {updates} updates, {cut} cut"
    assert lines[1] == f"  accuracy  {100 * records[-1]['test/accuracy']:.1f} % in the end"
    assert lines[2].startswith(f"  bytes  up {up // 1000} kB  down {down // 1000} kB   staleness mean ")
    assert " ".join(lines[3:]).split("checks")[1].split() == [*" ok ".join(NAMES).split(), "ok", "(8", "of", "8)"]
    assert max(map(len, lines)) < 80
    rows[0]["work"] += 1
    broken = RunFolder(write_run(tmp_path / "false", rows, records, **info))
    assert not inspect_run(broken)[1]
    assert "arrivals FAILED" in inspect_run(broken)[0]
    assert "\n  arrivals: job 0 of node 0 arrived at tick 340; its dispatch and parts give 341" in inspect_run(broken)[0]


def test_a_run_still_going_is_inspected_as_far_as_it_is_written(tmp_path: Path) -> None:
    rows, records = simulate([300, 200], 1, 2000, 1000)
    cut = [event["kind"] for event in rows].index("evaluate", 5)
    run = RunFolder(write_run(tmp_path / "run", rows[: cut + 1], records, status="running", reason=None, final=None))
    writer = RunWriter(run.path)
    text, ok = inspect_run(run)
    writer.release()
    assert ok
    assert text.startswith("  running  round ")


def test_inspect_tells_the_best_the_crossing_and_the_energy_and_of_peers_all_three(tmp_path: Path) -> None:
    """2 J arrived and 1 J was lost, a third; 50 % was met at 15 s, between evaluations 10 s apart."""
    rows = [row(0, "dispatch", 0, 0), row(0, "dispatch", 1, 1), row(9, "arrival", 0, 0), row(9, "drop", 1, 1)]
    records = [{"round": at, "time/seconds": 10.0 * at, "test/accuracy": value} for at, value in enumerate((0.25, 0.75, 0.5))]
    records[-1] |= {"nodes/accuracy_worst": 0.25, "average/accuracy": 1.0}
    hit = {"round": 1.5, "seconds": 15.0, "bytes": 2e6, "updates": 7.0, "joules": 2.5, "apart": 2 / 3}
    run = RunFolder(write_run(tmp_path / "run", rows, records, peers=True, target=0.5, target_reached=hit))
    run.columns["energy"] = np.array([0.0, 0.0, 2.0, 1.0])
    assert _quality(run) == ["node mean  50.0 % in the end; best 75.0 % at 10 s; worst node 25.0 %; averaged 100.0 %"]
    words = "crossed at round 2, after 15 s, 2.00 MB, 2.50 J, 7 updates; the evaluations around lie 67 % of that apart"
    assert _target(run) == [f"target  50 % {words}"] and _energy(run) == ["energy  3.00 J, 33 % of it for dropped jobs"]
    missed = RunFolder(write_run(tmp_path / "missed", rows, records, target=0.8))
    assert _target(missed) == ["target  80 % not reached"] and _energy(missed) == []
