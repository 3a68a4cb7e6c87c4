"""The picture of a grid: which setting is drawn where, and what its points are."""

from pathlib import Path

import pytest
from folders import simulate, write_run
from matplotlib.figure import Figure

from fedsim.report.figures.grid import Place, axes_of, draw_grid, in_lines, places
from fedsim.run.folders import RunFolder

pytestmark = pytest.mark.pictures


def ended(folder: Path, accuracy: float, variant: str, seed: int = 0, **changed: str) -> RunFolder:
    rows, records = simulate([300, 200], 1, 1000, 500)
    records[-1]["test/accuracy"] = accuracy
    name = f"{variant}-{'-'.join(changed.values())}-{seed}"
    keys = {key.replace("__", "."): value for key, value in changed.items()}
    return RunFolder(write_run(folder / name, rows, records, variant=variant, seed=seed, changed=keys))


def test_the_last_swept_setting_is_the_axis_and_seeds_are_one_point(tmp_path: Path) -> None:
    runs = [
        ended(tmp_path, 0.5 + 0.1 * seed + 0.01 * int(alpha), "fedavg", seed, task__alpha=alpha, train__lr="0.1")
        for alpha in ("1", "2")
        for seed in (0, 1)
    ]
    assert axes_of(runs) == ("task.alpha", "")  # lr has one value only
    found = places(runs, "task.alpha", "")
    assert {place: [round(end, 6) for end in ends] for place, ends in found.items()} == {
        Place("", "fedavg lr 0.1", "1"): [0.51, 0.61],
        Place("", "fedavg lr 0.1", "2"): [0.52, 0.62],
    }


def test_the_setting_before_it_makes_panels_and_others_lines(tmp_path: Path) -> None:
    runs = [ended(tmp_path, 0.5, variant, a=a, s__b=b, s__c=c) for variant in ("x", "y") for a in "12" for b in "34" for c in "56"]
    assert axes_of(runs) == ("s.c", "s.b")
    found = places(runs, "s.c", "s.b")
    assert len(found) == 16
    assert {place.panel for place in found} == {"b 3", "b 4"}
    assert {place.line for place in found} == {"x a 1", "x a 2", "y a 1", "y a 2"}


def test_the_setting_with_most_values_is_the_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And panels whose values are far apart have a scale each."""
    runs = [ended(tmp_path, 0.9 - 0.5 * int(b) + 0.01 * int(a), "x", a=a, b=b) for a in "123" for b in "01"]
    assert axes_of(runs) == ("a", "b")
    seen: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: seen.append(self))
    assert draw_grid(tmp_path / "grid.png", runs) and draw_grid(tmp_path / "grid.png", [*runs, ended(tmp_path, 0.92, "y", a="1", b="1")])
    far, near = ([panel.get_ylim() for panel in picture.axes] for picture in seen)
    assert far[0][0] > 90 and far[1][1] < 45
    assert near[0] == near[1]


def test_settings_that_change_together_are_one(tmp_path: Path) -> None:
    runs = [ended(tmp_path, 0.5, "x", a=a, first__share=b, second__share=b + "0", rate=c) for a in "12" for b in "34" for c in "9"]
    assert axes_of(runs) == ("first.share", "a")
    assert [(place.panel, place.line, place.value) for place in places(runs, "first.share", "a")] == [
        *(("a 1", "x rate 9", "3"), ("a 1", "x rate 9", "4"), ("a 2", "x rate 9", "3"), ("a 2", "x rate 9", "4")),
    ]


def test_settings_of_an_uneven_zip_stand_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid would have four rows of four with one point each, and no line."""
    runs = [ended(tmp_path, 0.5, "", a=a, s__b=b, c="1") for a, b in ("15", "26", "37", "45")]
    seen: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: seen.append(self))
    assert draw_grid(tmp_path / "grid.png", runs)
    [panel] = seen[0].axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["a 1\nb 5", "a 2\nb 6", "a 3\nb 7", "a 4\nb 5"]
    assert panel.containers[0].lines[0].get_linestyle() == "None" and not panel.get_xlabel() and not seen[0].legends


@pytest.mark.parametrize("changed", [{}, {"lr": "0.1"}])
def test_without_a_grid_there_is_no_picture(tmp_path: Path, changed: dict[str, str]) -> None:
    runs = [ended(tmp_path, 0.5, variant, **changed) for variant in ("x", "y")]
    assert not draw_grid(tmp_path / "grid.png", runs) and not (tmp_path / "grid.png").exists()


def test_points_stand_at_the_mean_with_bars_of_one_deviation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [ended(tmp_path, accuracy, "fedavg", seed, alpha=a) for a in "12" for seed, accuracy in enumerate((0.4, 0.6))]
    seen: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: (seen.append(self), save(self, *args, **options)))
    assert draw_grid(tmp_path / "grid.png", runs)
    [container] = seen[0].axes[0].containers
    assert list(container.lines[0].get_ydata()) == pytest.approx([50.0, 50.0])
    low, high = container.lines[2][0].get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * 100 * 0.02**0.5)
    assert [label.get_text() for label in seen[0].axes[0].get_xticklabels()] == ["1", "2"]


def test_a_swept_part_stands_in_lines() -> None:
    assert in_lines("{name: dirichlet, alpha: 0.2, nodes: 20}") == "dirichlet\nalpha: 0.2\nnodes: 20"
    nested = "{name: swap, inner: {name: ring, a: 1}}"
    assert [in_lines(value) for value in ("0.1", "fedavg", nested)] == ["0.1", "fedavg", nested]
