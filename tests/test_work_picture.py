"""Which stretch of a run, which clients and which variants pictures show."""

from pathlib import Path

import numpy as np
import pytest
from folders import Row, row, write_labels, write_run
from matplotlib.figure import Figure

from fedsim.report.figures.plots import draw
from fedsim.report.figures.work import Jobs, charts_of, draw_gantt, draw_staleness, window
from fedsim.report.style import most_unlike, variants_of
from fedsim.run.folders import RunFolder


def jobs_at(*spans: tuple[int, int, int], drop: bool = False) -> list[Row]:
    """Events of jobs (node, start, ticks of work), each merged alone when it arrives, or all dropped then."""
    rows = []
    for job, (node, start, work) in enumerate(spans):
        rows.append(row(start, "dispatch", node, job, work=work))
        rows.append(row(start + work, "drop" if drop else "arrival", node, job))
        rows += [] if drop else [row(start + work, "merge", node, job, 1, staleness=0)]
    return sorted(rows, key=lambda event: event["time"])


def a_run(folder: Path, rows: list[Row], label: str = "a") -> RunFolder:
    return RunFolder(write_run(folder / label, rows, [], label=f"{label} seed 0"))


def test_short_jobs_between_long_waits_are_shown_over_several_merges(tmp_path: Path) -> None:
    """Jobs of 1 s, a merge each 100 s: 300 s are shown, not twelve jobs' lengths."""
    run = a_run(tmp_path, jobs_at(*((0, 100_000 * turn, 1000) for turn in range(20))))
    assert Jobs(run).stretch() == 300.0


def test_the_start_is_shown_unless_much_more_happens_elsewhere(tmp_path: Path) -> None:
    steady = Jobs(a_run(tmp_path, jobs_at(*((0, 1000 * turn, 1000) for turn in range(100))), "steady"))
    assert window([steady]) == (0.0, 3.0)
    quiet = [(0, 0, 1000), *((node, 90_000 + 1000 * turn, 1000) for turn in range(9) for node in range(5))]
    start, stop = window([Jobs(a_run(tmp_path, jobs_at(*quiet), "quiet"))])
    assert start >= 89 and stop <= 99 and stop - start == 3


def test_clients_shown_are_from_the_quickest_to_the_slowest(tmp_path: Path) -> None:
    jobs = Jobs(a_run(tmp_path, jobs_at(*((node, 0, 1000 * (1 + (7 * node) % 10)) for node in range(10)))))
    assert jobs.choose(2, 0.0, 10.0).tolist() == [0, 7]  # of 1 s and 10 s
    assert len(jobs.choose(20, 0.0, 10.0)) == 10


def test_the_same_course_of_work_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same, other = jobs_at((0, 0, 1000), (1, 0, 2000)), jobs_at((0, 0, 1500), (1, 0, 2000))
    variants = variants_of([a_run(tmp_path, rows, name) for rows, name in ((same, "a"), (same, "b"), (other, "c"))])
    assert [name for name, *_ in charts_of(variants)] == ["a and 1 more", "c"]
    seen = []
    monkeypatch.setattr(Figure, "savefig", lambda picture, *_, **__: seen.append(picture))
    assert draw_gantt(tmp_path / "gantt.png", variants)
    assert [panel.get_title("left") for panel in seen[0].axes] == [
        f"{name}: 2 of 2 clients, the whole run" for name in ("a and 1 more", "c")
    ]


def test_what_was_never_stale_has_no_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh, stale = jobs_at((0, 0, 1000)), jobs_at((0, 0, 1000))
    stale[-1] |= {"staleness": 4}
    variants = variants_of([a_run(tmp_path, fresh, "fresh"), a_run(tmp_path, stale, "stale")])
    seen = []
    monkeypatch.setattr(Figure, "savefig", lambda picture, *_, **__: seen.append(picture))
    assert draw_staleness(tmp_path / "staleness.png", variants) and not draw_staleness(tmp_path / "none.png", variants[:1])
    assert [panel.get_title("left") for panel in seen[0].axes] == ["stale: mean 4.0, greatest 4"]
    assert seen[0].get_supxlabel() == "always 0: fresh"


def test_the_most_unlike_are_chosen_and_not_the_first() -> None:
    """The farthest from the mean of 2.1 is 10, then 0 farthest from it, then 1 (9 from 10 and 1 from 0) after 3.5."""
    assert most_unlike([[0.0], [0.1], [0.2], [1.0], [3.5], [10.0]], 3) == [0, 4, 5]
    assert most_unlike([[1.0], [2.0]], 3) == [0, 1] and most_unlike([[1.0]] * 4, 2) == [0, 1] and most_unlike([], 2) == []


def test_splits_most_unlike_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five alike and one where each client has one class, the one is there though it is the last."""
    runs = [a_run(tmp_path, [], f"v{place}") for place in range(6)]
    for place, run in enumerate(runs[:5]):
        write_labels(run.path, 20 + place, 4, 50.0)
    np.savez(runs[5].path / "labels.npz", counts=np.eye(4, dtype=np.int64) * 9)
    seen = []
    monkeypatch.setattr(Figure, "savefig", lambda picture, *_, **__: seen.append(picture))
    draw(runs)
    titles = [panel.get_title("left") for panel in seen[-1].axes if panel.get_title("left")]
    assert len(titles) == 4 and titles[-1].startswith("v5: ")


def test_consensus_gap_and_energy_are_drawn_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [
        {
            "round": at,
            "time/seconds": float(at),
            "time/wall_seconds": float(at),
            "traffic/bytes": at,
            "work/updates": at,
            "test/accuracy": 0.5,
        }
        | {"nodes/consensus": 10.0**at, "nodes/spectral_gap": 0.5, "energy/joules": 2000.0 * at}
        for at in range(4)
    ]
    seen = []
    monkeypatch.setattr(Figure, "savefig", lambda picture, *_, **__: seen.append(picture))
    written = draw([RunFolder(write_run(tmp_path / "peers", [], records))])
    assert [file.name for file in written] == ["accuracy.png", "consensus.png", "spectral_gap.png", "energy.png"]
    assert [panel.get_xlabel() for panel in seen[0].axes][3:5] == ["energy of the clients (kJ)", "updates merged"]
    assert [len(picture.axes) for picture in seen] == [6, 6, 6, 4] and seen[1].axes[0].get_yscale() == "log"
    assert seen[3].axes[0].get_ylabel() == "energy of the clients (kJ)" and seen[3].axes[0].lines[0].get_ydata().tolist() == [0, 2, 4, 6]
    server = [record | {"nodes/consensus": 0.0, "nodes/spectral_gap": None, "energy/joules": None} for record in records]
    assert [file.name for file in draw([RunFolder(write_run(tmp_path / "server", [], server))])] == ["accuracy.png"]
