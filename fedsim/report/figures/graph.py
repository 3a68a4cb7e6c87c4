"""graph.png: who hears whom among peers."""

from collections.abc import Sequence
from math import pi
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.report.style import COLOURS, GREY, Variant, figure, most_unlike, some_of

MAPS = 6  # graphs side by side
SPRINGS = 200  # nodes that are laid out by their edges; more stand in a circle


def graphs_of(variants: Sequence[Variant]) -> list[tuple[str, dict[str, NDArray[Any]], bool]]:
    """The different graphs among the variants' first runs: names of the variants, the graph, and whether it changes with the rounds."""
    found: dict[bytes, tuple[list[str], dict[str, NDArray[Any]], bool]] = {}
    for variant in variants:
        graph = variant.runs[0].graph
        if graph is not None:
            moving = _changes(variant)
            same = b"".join(graph[name].tobytes() for name in ("hearer", "sender", "nodes")) + bytes([moving])
            found.setdefault(same, ([], graph, moving))[0].append(variant.name)
    return [(shorten(", ".join(names), 40, placeholder="..."), graph, moving) for names, graph, moving in found.values()]


def _changes(variant: Variant) -> bool:
    from fedsim.scenario.parts import find
    from fedsim.topology import Topology

    name = variant.runs[0].parameters.get("schedule.topology", variant.runs[0].parameters.get("schedule.topology.name", ""))
    try:
        return getattr(find(Topology, name), "changes", False) is True if name and ":" not in name else False
    except ValueError:
        return False


def places(graph: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Where nodes are drawn, float64 [nodes, 2]: by springs along the edges, or in a circle in the order of their ids."""
    nodes = int(graph["nodes"])
    turn = 2 * pi * np.arange(nodes) / nodes
    circle = np.stack([np.sin(turn), np.cos(turn)], 1)
    steps = (graph["hearer"] - graph["sender"]) % nodes
    if nodes > SPRINGS or nodes < 3 or len(np.unique(steps)) * nodes == len(steps):  # the same for each node: a ring, a complete graph
        return circle
    import networkx

    drawn = networkx.empty_graph(nodes)
    drawn.add_edges_from(zip(graph["hearer"].tolist(), graph["sender"].tolist(), strict=True))
    found = networkx.kamada_kawai_layout(drawn, pos=dict(enumerate(circle)))
    return np.array([found[node] for node in range(nodes)])


def draw_graph(file: Path, variants: Sequence[Variant]) -> bool:
    """The six graphs most unlike, with their spectral gaps; False where no run is of peers."""
    different = graphs_of(variants)
    chosen = most_unlike([[float(graph["gap"]), len(graph["hearer"]), float(moving)] for _, graph, moving in different], MAPS)
    graphs = [different[place] for place in chosen]
    if not graphs:
        return False
    columns = min(3, len(graphs))
    rows = -(-len(graphs) // columns)
    with figure(file, rows, columns, (max(3.6, 3.2 * columns), 3.8 * rows)) as (picture, panels):
        if len(different) > MAPS:
            picture.suptitle(some_of(MAPS, len(different), "different graphs")[2:])
        for empty in panels.flat[len(graphs) :]:
            empty.axis("off")
        for panel, (names, graph, moving) in zip(panels.flat, graphs, strict=False):
            _panel(panel, graph)
            panel.set_title(
                f"{names}\n{int(graph['nodes'])} nodes, spectral gap {float(graph['gap']):.3g}" + ("; round 1" if moving else "")
            )
    return True


def _panel(panel: Any, graph: dict[str, NDArray[Any]]) -> None:
    from matplotlib.collections import LineCollection

    at, hearer, sender = places(graph), graph["hearer"], graph["sender"]
    edges = set(zip(hearer.tolist(), sender.tolist(), strict=True))
    one_way = [edge for edge in edges if edge[::-1] not in edges]
    both = [edge for edge in edges if edge[0] < edge[1] and edge[::-1] in edges]
    panel.add_collection(LineCollection([at[list(edge)] for edge in both], colors=GREY, linewidths=0.8, zorder=1))
    for to, of in one_way:
        panel.annotate("", at[to], at[of], arrowprops={"arrowstyle": "->", "color": GREY, "shrinkA": 4, "shrinkB": 4, "linewidth": 0.8})
    panel.scatter(*at.T, s=max(6, 60 - len(at) // 3), color=COLOURS[0], zorder=2)
    if len(at) <= 40:
        for node, place in enumerate(at):
            panel.annotate(str(node), place, ha="center", va="center", fontsize=6, color="white", zorder=3)
    panel.set_aspect("equal")
    panel.margins(0.1)
    panel.axis("off")
