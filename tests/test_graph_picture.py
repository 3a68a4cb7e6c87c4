"""The picture of who hears whom, from runs of peers."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from fedsim.commands.experiment import execute
from fedsim.report.figures.graph import draw_graph, graphs_of, places
from fedsim.report.style import variants_of
from fedsim.run.building import Tasks
from fedsim.run.folders import find_runs
from fedsim.scenario import load

pytestmark = pytest.mark.pictures

SCENARIO = """
task: {data: digits, partition: {name: iid, nodes: 8}, model: logistic}
strategy: dsgd
train: {steps: 1}
stop: {rounds: 1}
track: none
sweep:
  variants:
    ring: {schedule: {name: gossip, topology: ring}}
    again: {schedule: {name: gossip, topology: ring}}
    star: {schedule: {name: gossip, topology: star}}
    one_way: {schedule: {name: gossip, topology: exponential}}
    pairs: {schedule: {name: gossip, topology: matchings}}
    last: {schedule: {name: gossip, topology: {name: final_merge, inner: none}}}
"""


def test_graphs_of_a_sweep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "graphs.yaml").write_text(SCENARIO)
    assert execute(load(folder / "graphs.yaml"), Tasks(), quiet=True) == 0
    runs = find_runs(["graphs"])
    found = graphs_of(variants_of(runs))
    assert [(names, changes) for names, _, changes in found] == [
        ("ring, again", False),
        ("star", False),
        ("one_way", False),
        ("pairs", True),
        ("last", False),
    ]
    gaps = [float(graph["gap"]) for _, graph, _ in found]
    assert gaps[:2] == pytest.approx([1 - (1 + 2 * np.cos(np.pi / 4)) / 3, 1 / 8])
    assert gaps[3:] == pytest.approx([0, 0])
    assert [len(graph["hearer"]) for _, graph, _ in found] == [16, 14, 24, 8, 0]
    ring, star = (places(graph) for _, graph, _ in found[:2])
    assert np.linalg.norm(ring, axis=1) == pytest.approx(np.ones(8))
    assert np.linalg.norm(star - star[0], axis=1)[1:].std() < 0.1  # leaves around their centre
    seen: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: (seen.append(self), save(self, *args, **options)))
    assert draw_graph(folder / "graph.png", variants_of(runs))
    titles = [panel.get_title() for panel in seen[0].axes]
    assert titles[1] == "star\n8 nodes, spectral gap 0.125" and titles[3] == "pairs\n8 nodes, spectral gap 0; round 1"
    assert (find_runs(["graphs"])[0].path.parent / "figures" / "graph.png").exists()
    assert [record["round"] for record in runs[-1].metrics] == [0, 1, 1]  # the start, round 1, and after the last merge


def test_a_server_has_no_graph(folder: Path) -> None:
    (folder / "one.yaml").write_text(SCENARIO.split("sweep")[0].replace("dsgd", "fedavg"))
    assert execute(load(folder / "one.yaml"), Tasks(), quiet=True) == 0
    runs = find_runs(["one"])
    assert runs[0].graph is None and not draw_graph(folder / "graph.png", variants_of(runs))
