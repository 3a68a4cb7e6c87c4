import sys
from pathlib import Path

import numpy as np
import pytest
from folders import row, simulate, write_labels, write_run, write_sweep
from launch import call
from matplotlib.figure import Figure
from rich.console import Console

from fedsim.base.text import clock, duration, short_percent, size, spread
from fedsim.report.figures.chart import draw_chart
from fedsim.report.figures.curves import apart, band
from fedsim.report.figures.labels import draw_labels, in_order
from fedsim.report.figures.plots import draw, figures_of
from fedsim.report.figures.work import Jobs
from fedsim.report.style import TIMES, drawn, unit_for, variants_of
from fedsim.report.tables import print_summary
from fedsim.run.folders import RunFolder, find_runs, runs_in

pytestmark = pytest.mark.pictures

ALL = ["accuracy.png", "loss.png", "staleness.png", "gantt.png", "labels.png"]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two variants, one with two seeds, that reach 80 % or do not."""
    monkeypatch.chdir(tmp_path)
    upper = Path("runs/demo/20261121-142530-3f9a1c")
    names = []
    for variant, seed, hit in (("sync", 0, 60.0), ("sync", 1, 90.0), ("buffered", 0, None)):
        rows, records = simulate([300 + 10 * seed, 200, 250], 1 + (variant == "sync"), 3000, 500, 5)
        for record, accuracy in zip(records[-1:], (0.8 + 0.1 * seed,), strict=True):
            record |= {"test/accuracy": accuracy, "clients/accuracy_worst_10": 0.5, "traffic/bytes": 45_400_000, "work/updates": 1180}
        reached = hit and {"round": 3, "seconds": hit, "bytes": 1e7 * (1 + seed), "updates": 100 + 10 * seed, "apart": 0.1}
        info = {"label": f"{variant} seed {seed}", "variant": variant, "seed": seed, "target": 0.8, "target_reached": reached}
        folder = write_run(upper / f"{variant}-seed{seed}", rows, records, reason="20 min", model=f"{seed}{variant}", **info)
        write_labels(folder, 3, 4, 0.5)
        names.append(folder.name)
    return write_sweep(upper, names)


def pixels(file: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    from matplotlib.image import imread

    return imread(file)


def test_a_sweep_gets_five_pictures_in_its_own_figures(sweep: Path) -> None:
    written = draw(find_runs(["demo"]))
    assert written == [sweep / "figures" / name for name in ALL]
    for file in written:
        picture = pixels(file)
        assert min(picture.shape[:2]) > 200
        assert picture[..., :3].std() > 0.05  # not blank


def test_curves_have_their_variants_colours(sweep: Path) -> None:
    """Blue and orange, the first two colours, are in accuracy.png; a run alone is blue only."""
    colours = {"blue": (0x00, 0x72, 0xB2), "orange": (0xE6, 0x9F, 0x00)}

    def has(file: Path, colour: str) -> bool:
        return bool((np.abs(pixels(file)[..., :3] * 255 - colours[colour]).max(-1) < 4).sum() > 50)

    several, alone = draw(find_runs(["demo"]))[0], draw(find_runs(["demo/buffered"]))[0]
    assert has(several, "blue")
    assert has(several, "orange")
    assert has(alone, "blue")
    assert not has(alone, "orange")


def test_pictures_of_some_do_not_replace_those_of_all(sweep: Path) -> None:
    assert figures_of(find_runs(["demo/buffered"])) == sweep / "buffered-seed0/figures"
    assert figures_of(find_runs(["demo/sync"])) == sweep / "figures/sync"
    assert figures_of(find_runs(["demo"])) == sweep / "figures"


def test_only_what_was_measured_is_drawn(tmp_path: Path) -> None:
    rows = [row(0, "dispatch", 0, 0, 0, steps=5), row(0, "arrival", 0, 0, 0), row(0, "merge", 0, 0, 1, staleness=0)]
    records = [
        {"round": n, "time/seconds": 0.0, "traffic/bytes": 0, "time/wall_seconds": 0.1 * n, "test/loss": 2.0 / (n + 1)} for n in range(3)
    ]
    no_time = RunFolder(write_run(tmp_path / "a", rows, records))
    assert [file.name for file in draw([no_time])] == ["loss.png"]  # nothing takes time, and nothing was stale
    rows[-1] |= {"staleness": 1}
    attacked = [record | {"test/robust_accuracy": 0.5, "test/robust_loss": 1.0} for record in records]
    under_attack = RunFolder(write_run(tmp_path / "c", rows, attacked))
    assert [file.name for file in draw([under_attack])] == ["loss.png", "robust_accuracy.png", "robust_loss.png", "staleness.png"]
    nothing = RunFolder(write_run(tmp_path / "b", [], []))
    assert draw([nothing]) == []


def test_a_diverged_run_is_drawn_as_far_as_it_is_finite(tmp_path: Path) -> None:
    rows, records = simulate([300, 200], 1, 3000, 500)
    for record in records[3:]:
        record |= {"test/loss": float("nan"), "test/accuracy": None}
    assert [file.name for file in draw([RunFolder(write_run(tmp_path / "a", rows, records))])] == ALL[:4]


def test_a_band_is_not_extrapolated() -> None:
    """Seeds from 0 to 4 and from 1 to 3: y = x and y = x + 2 give mean x + 1 and deviation sqrt(2) from 1 to 3."""
    x, mean, deviation = band([(np.array([0.0, 4.0]), np.array([0.0, 4.0])), (np.array([1.0, 3.0]), np.array([3.0, 5.0]))])
    assert x.tolist() == [1.0, 3.0]
    np.testing.assert_allclose(mean, x + 1)
    np.testing.assert_allclose(deviation, np.sqrt(2))


def test_seeds_that_end_far_apart_have_no_mean() -> None:
    """As those that end by `stop.accuracy`: a mean up to the first end would never reach what each of them does."""
    to = [(np.array([0.0, end]), np.array([0.0, 1.0])) for end in (10.0, 11.0, 30.0)]
    assert not apart(to[:2]) and apart(to)


def test_variants_are_runs_that_differ_in_their_seed(tmp_path: Path) -> None:
    def run(folder: str, label: str, seed: int, name: str = "demo") -> RunFolder:
        return RunFolder(write_run(tmp_path / folder, [], [], label=label, seed=seed, name=name))

    runs = [run("a", "fedprox lr0.1 seed 0", 0), run("b", "sync seed 0", 0), run("c", "fedprox lr0.1 seed 1", 1)]
    variants = variants_of(runs)
    assert [(variant.name, len(variant.runs)) for variant in variants] == [("fedprox lr0.1", 2), ("sync", 1)]
    assert variants[0].colour != variants[1].colour
    assert [variant.name for variant in variants_of([run("d", "seed 0", 0)])] == ["demo"]
    assert [variant.name for variant in variants_of([run("e", "seed 0", 0), run("f", "seed 0", 0)])] == ["demo e", "demo f"]
    assert [variant.name for variant in variants_of([run("g", "sync seed 0", 0), run("h", "sync seed 0", 0, "old")])] == [
        "demo sync",
        "old sync",
    ]


def test_jobs_in_seconds_end_where_they_were_dropped(tmp_path: Path) -> None:
    rows = [
        row(0, "dispatch", 4, 0, 0, down=100, work=800, up=100),
        row(0, "dispatch", 2, 1, 0, down=100, work=1800, up=100),
        row(500, "drop", 2, 1),
        row(1000, "arrival", 4, 0, 0),
        row(1000, "merge", 4, 0, 1, staleness=0),
    ]
    jobs = Jobs(RunFolder(write_run(tmp_path / "run", rows, [])))
    assert (jobs.node.tolist(), jobs.stop.tolist(), jobs.dropped.tolist()) == ([4, 2], [1.0, 0.5], [False, True])
    assert (jobs.merges.tolist(), jobs.end, jobs.nodes) == ([1.0], 1.0, 5)
    assert jobs.choose(10, 0.0, 1.0).tolist() == [2, 4]


def test_many_clients_are_sorted_and_averaged_without_losing_any() -> None:
    counts = np.zeros((1001, 2), dtype=np.int64)
    counts[::2, 0], counts[1::2, 1] = 4, 8
    shares, sizes = in_order(counts)
    assert shares.shape == (200, 2)
    assert shares[0].tolist() == [100.0, 0.0]
    assert shares[-1].tolist() == [0.0, 100.0]
    assert (sizes[0], sizes[-1]) == (4.0, 8.0)


@pytest.mark.parametrize(("number", "title"), [(4, None), (6, "4 of 6 different splits, the most unlike")])
def test_splits_that_have_no_room_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, title: str | None) -> None:
    runs = [RunFolder(write_run(tmp_path / f"{place}", [], [], label=f"alpha {place} seed 0")) for place in range(number)]
    for place, run in enumerate(runs):
        write_labels(run.path, 3 + place, 4, 0.5)
    seen = []
    monkeypatch.setattr(Figure, "savefig", lambda picture, *_, **__: seen.append(picture))
    draw_labels(tmp_path / "labels.png", variants_of(runs))
    assert [(picture.get_suptitle() or None, len(picture.axes)) for picture in seen] == [(title, 4 * 3)]  # a bar, a map and its scale


def test_one_chart_is_as_wide_as_a_column_and_has_what_was_asked_for(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(Figure, "savefig", lambda picture, *_, **__: seen.append(picture))
    file, caption = draw_chart(find_runs(["demo"]), "bytes", "worst_10", "sync", "pdf")
    assert file == sweep / "figures/sync/worst_10-bytes.pdf" and caption.startswith("line: mean of 2 seeds")
    [panel] = seen[0].axes
    assert seen[0].get_size_inches().tolist() == [3.4, 2.8]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("traffic, all directions (MB)", "accuracy of the worst 10 % of clients (%)")
    assert [text.get_text() for text in seen[0].legends[0].get_texts()] == ["sync"]
    assert draw_chart(find_runs(["demo"]), y="test/loss")[0] == sweep / "figures/test-loss-seconds.png"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--x", "secnods"], "no evaluation has `secnods`; did you mean `seconds`?"),
        (["--y", "energy"], "no evaluation has `energy`"),
        (["--variants", "sync,bufered"], "no finished variant `bufered`; did you mean `buffered`?"),
        (["--format", "pfd"], "--format pfd: unknown format; did you mean `pdf`?"),
    ],
)
def test_a_chart_of_nothing_known(sweep: Path, options: list[str], said: str) -> None:
    shown = call("plot", "demo", *options)
    assert (shown.exit_code, shown.stdout) == (2, "") and said in shown.stderr


def test_numbers_for_people() -> None:
    seconds = [0, 0.05, 12.34, 59.96, 860, 1200, 3599.7, 114_840, 172_800, 450_000]
    assert [duration(value) for value in seconds] == [
        "0 s",
        "50.0 ms",
        "12.3 s",
        "1 min",
        "14 min 20",
        "20 min",
        "1.0 h",
        "31.9 h",
        "48.0 h",
        "5.2 d",
    ]
    assert [size(value) for value in (0, 999, 1000, 45_400_000, 999_999, 228e9)] == [
        "0 B",
        "999 B",
        "1.00 kB",
        "45.4 MB",
        "1.00 MB",
        "228 GB",
    ]
    assert [clock(value) for value in (981, 3780)] == ["16:21", "1:03:00"]
    assert [short_percent(value) for value in (0.85, 0.975)] == ["85 %", "97.5 %"]
    assert [spread(values) for values in ([], [0.862], [0.8, 0.9])] == ["-", "86.2 %", "85.0 +- 7.1"]
    assert [unit_for(value, TIMES)[1] for value in (0.4, 100, 1200, 20_000, 1e6)] == ["ms", "s", "min", "h", "d"]


def summary_of(*texts: str, pictures: list[Path] | None = None) -> list[str]:
    console = Console(width=80, force_terminal=False, highlight=False)
    with console.capture() as capture:
        print_summary(find_runs(texts), pictures or [], console)
    return capture.get().splitlines()


def test_the_closing_table_of_a_sweep(sweep: Path) -> None:
    assert summary_of("demo", pictures=[sweep / "figures/accuracy.png"]) == [
        "demo  finished 3 of 3  in 21 s           target 80 %, confirmed by 3 evaluations",
        "                   ------ at the end ------  ---- to 80 % ----",
        "            seeds     accuracy   worst 10 %      time    bytes  ended by",
        "  sync          2  85.0 +- 7.1  50.0 +- 0.0  1 min 15  15.0 MB  20 min",
        "  buffered      1       80.0 %       50.0 %         -        -  20 min",
        "  ended above the target before 3 evaluations confirmed it: buffered",
        "  folder   runs/demo/20261121-142530-3f9a1c                 model 0syn 1syn 0buf",
        "  picture  .../figures/accuracy.png                    next: fedsim compare demo",
    ]


def test_a_sweep_that_was_stopped_counts_the_runs_that_never_began(sweep: Path) -> None:
    for name in ("sync-seed1", "buffered-seed0"):
        (sweep / name / "run.json").unlink()
    assert summary_of("demo")[0].startswith("demo  finished 1 of 3  in 7 s")


def test_the_next_command_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "my runs", *simulate([300], 1, 1000, 500))
    assert summary_of("my runs")[-1] == "  next: fedsim inspect 'my runs'"


def test_a_failed_run_says_why_within_the_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "elsewhere"
    write_run(
        folder, [], [{"round": 3, "test/loss": 2.5, "traffic/bytes": 0}], status="failed", reason="NaN loss in round 3 " * 5, model=None
    )
    lines = summary_of(str(folder))
    assert lines[0] == "demo  finished 0 of 1  in 7 s"
    assert lines[1].split() == ["loss", "bytes", "updates", "ended", "by"]
    assert lines[2].startswith("  demo     -      -        -  failed: NaN loss in round 3")
    assert lines[-1] == "  next: fedsim inspect elsewhere"
    assert max(map(len, lines)) <= 80


def test_pictures_need_matplotlib_only_when_drawn() -> None:
    import subprocess

    code = "import sys, fedsim.report.figures.plots; print('matplotlib' in sys.modules, 'pyarrow' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]


def test_runs_in_a_folder_that_is_none(tmp_path: Path) -> None:
    assert runs_in(tmp_path) == []


def test_a_map_of_some_clients_says_of_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(write_run(tmp_path / "run", [], [], nodes=5000))
    write_labels(run.path, 300, 4, 0.5)
    seen = []
    monkeypatch.setattr(Figure, "savefig", lambda picture, *_, **__: seen.append(picture))
    draw_labels(tmp_path / "labels.png", variants_of([run]))
    assert seen[0].axes[1].get_xlabel() == "300 of 5,000 clients, sorted by commonest label, neighbours averaged"


def test_names_that_no_font_here_has_are_drawn_without_a_word(tmp_path: Path) -> None:
    run = RunFolder(write_run(tmp_path / "run", *simulate([300, 200], 1, 1000, 500), label="每轮 $x$ seed 0"))
    assert draw_chart([run], "bytes", "loss", "每轮 $x$")[0].stat().st_size > 10_000


def test_runs_of_different_tasks_are_no_seeds_of_one_line(tmp_path: Path) -> None:
    texts = [f"seed: {seed}\ntask: {{data: {data}}}\n" for seed, data in enumerate(("digits", "digits", "mnist"))]
    runs = [
        RunFolder(write_run(tmp_path / f"run{seed}", [], [], text, label=f"sync seed {seed}", seed=seed)) for seed, text in enumerate(texts)
    ]
    variants, left = drawn(runs)
    assert [(one.name, len(one.runs)) for one in variants] == [("sync, data digits", 2), ("sync, data mnist", 1)] and not left
    assert len({one.colour for one in variants}) == 2


def test_lines_of_a_legend_take_nothing_from_the_chart(tmp_path: Path) -> None:
    """As wide as a column, and higher by each name that needs a line of its own beyond two."""
    rows, records = simulate([300, 200], 1, 1000, 500)
    names = [f"a name with no room for others beside it {place}" for place in range(4)]
    runs = [RunFolder(write_run(tmp_path / f"run{place}", rows, records, label=f"{name} seed 0")) for place, name in enumerate(names)]
    file, _ = draw_chart(runs, folder=tmp_path)
    assert pixels(file).shape[:2] == (round(300 * (2.8 + 2 * 0.17)), 3.4 * 300)


def test_what_is_whole_is_shown_beside_damaged_events(sweep: Path) -> None:
    damaged = sweep / "sync-seed0/events/000001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:100])
    plotted, inspected = call("plot", "demo"), call("inspect", "demo")
    assert plotted.stdout.split() == [str(sweep / "figures" / name) for name in ("accuracy.png", "loss.png", "labels.png")]
    assert plotted.stderr.startswith(f"no pictures of events: {damaged}: unreadable event segment")
    assert inspected.stderr.startswith(f"{damaged}: unreadable event segment") and "sync-seed0" not in inspected.stdout
    assert all(f"{sweep / name}\n  finished" in inspected.stdout for name in ("sync-seed1", "buffered-seed0"))
    assert (plotted.exit_code, inspected.exit_code) == (2, 2)
    (damaged.parent.parent / "run.json").write_text("{")
    plotted = call("plot", "demo")
    assert plotted.stderr.startswith(f"not drawn: {sweep}/sync-seed0/run.json: broken") and plotted.exit_code == 2
    assert "accuracy.png" in plotted.stdout and "gantt.png" in plotted.stdout
