"""Of the page of `fedsim report`: the runs of one task, as plain lists and texts that are written as JSON."""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from statistics import fmean, stdev
from typing import Any

import numpy as np

from fedsim.base.text import count, duration, percent, three_digits
from fedsim.report.columns import ACCURACIES, COSTS, TITLES, accuracy_of, at_target, final, sparse
from fedsim.report.diagnosis import Diagnosis
from fedsim.report.figures import waits
from fedsim.report.figures.curves import AXES, ENERGY, FALLING
from fedsim.report.figures.graph import graphs_of, places
from fedsim.report.figures.labels import in_order, splits_of
from fedsim.report.page import bars
from fedsim.report.page.digest import Digest, evenly, short
from fedsim.report.style import Variant, most_unlike, some_of
from fedsim.run.folders import RunFolder
from fedsim.run.streamed import MOST, events_of

KINDS = {"round": "count", "time/seconds": "seconds", "traffic/bytes": "bytes", "time/wall_seconds": "seconds"}
KINDS |= {"energy/joules": "joules", "work/updates": "count", "work/dropped": "count"}
WORDS = {"test/accuracy": "test accuracy", "test/loss": "test loss", "clients/accuracy_mean": "accuracy of clients, mean"}
WORDS |= {"clients/accuracy_worst_10": "accuracy of clients, worst 10 %", "staleness/mean": "staleness, mean so far"}
WORDS |= {"average/accuracy": "accuracy of the averaged model", "nodes/accuracy_worst": "accuracy of the worst node"}
QUIET = ("about", "seed", "track", "sweep", "smoke", "checkpoint", "deploy", "engine")  # settings that change no result
GRAPHS, EDGES, MAPS, LABELS = 6, 3000, 4, 60
Cell = tuple[str, float | None]


def contents(name: str, variants: Sequence[Variant], digests: Mapping[str, Digest]) -> dict[str, Any]:
    """All that is shown of a task's finished runs; `digests` by the runs' paths."""
    runs = [(place, digests[str(run.path)]) for place, variant in enumerate(variants) for run in variant.runs]
    return {
        "name": name,
        "variants": [{"name": variant.name, "runs": len(variant.runs)} for variant in variants],
        "targets": sorted({float(goal) for _, one in runs if (goal := one.run.info.get("target")) is not None}),
        "accuracy": accuracy_of([one.run for _, one in runs]),
        "axes": _axes(runs),
        "measures": _measures(runs),
        "runs": [_run(place, one) for place, one in runs],
        "thinned": any(one.evaluations > len(next(iter(one.curves.values()), [])) for _, one in runs),
        "table": _table(variants, digests),
        "each": _each(variants, digests),
        "settings": _settings(variants),
        "gantt": bars.charts(_logged(variants)),
        "at_work": bars.at_work(_logged(variants)),
        "waits": waits.maps([(variant.name, found) for variant in variants if (found := digests[str(variant.runs[0].path)].time)]),
        "graphs": _graphs(variants),
        "labels": _labels(variants),
    }


def _logged(variants: Sequence[Variant]) -> list[Variant]:
    return [variant for variant in variants if 0 < events_of(variant.runs[0]) <= MOST]


def _axes(runs: Sequence[tuple[int, Digest]]) -> list[dict[str, Any]]:
    """What curves can be drawn against: all that is not always 0."""
    known = [*AXES[:3], *ENERGY, *AXES[3:]]
    used = {name for _, one in runs for name, *_ in known if any(one.curves.get(name, []))}
    return [{"key": name, "title": title, "kind": KINDS[name]} for name, title, _ in known if name in used]


def _measures(runs: Sequence[tuple[int, Digest]]) -> list[dict[str, Any]]:
    """What was measured and differs: accuracies first."""
    axes = {name for name, *_ in AXES} | {"work/updates"}
    found = dict.fromkeys(name for _, one in runs for name, values in one.curves.items() if name not in axes and any(values))
    ordered = sorted(found, key=lambda name: (not name.endswith("accuracy"), "accuracy" not in name, not name.startswith("test/")))
    return [
        {
            "key": name,
            "title": WORDS.get(name, name.replace("/", " ").replace("_", " ")),
            "kind": "percent" if "accuracy" in name else KINDS.get(name, "number"),
            "falls": any(word in name for word in FALLING),
        }
        for name in ordered
    ]


def _run(place: int, one: Digest) -> dict[str, Any]:
    run = one.run
    ends = {name: final(run, metric) for name, (metric, _) in COSTS.items()}
    found = {"v": place, "seed": run.info.get("seed"), "curves": one.curves, "staleness": one.staleness}
    found |= {"merged": one.merged, "clients": one.accuracies, "target": run.info.get("target")}
    found |= {"end": {name: short(values[0]) for name, values in ends.items() if values}}
    return found | {"reached": {name: short(value) for name, value in (run.info.get("target_reached") or {}).items()}}


# Tables


def _table(variants: Sequence[Variant], digests: Mapping[str, Digest]) -> dict[str, Any]:
    """A row a variant: means over seeds, medians at the target."""
    runs = [run for variant in variants for run in variant.runs]
    kind = accuracy_of(runs)
    peers = any(run.info.get("peers") for run in runs)
    columns: list[tuple[str, str, Callable[[Variant], Cell]]] = [("variant", "", lambda v: (v.name, None))]
    columns += [("seeds", "", lambda v: (str(len(v.runs)), len(v.runs)))]
    shares = {kind: ACCURACIES[kind]} if kind else {}
    shares |= {"nodes/accuracy_worst": "worst node", "average/accuracy": "averaged"} if peers else {}
    for metric, title in (shares | {"clients/accuracy_worst_10": "worst 10 %"}).items():
        columns += [(title, "at the end", lambda v, metric=metric: _spread(v, metric, percent, True))]  # type: ignore[misc]
    columns += [("loss", "at the end", lambda v: _spread(v, "test/loss", lambda loss: f"{loss:.4g}"))]
    if any(run.info.get("target") is not None for run in runs):
        columns += [(TITLES[name], "to the target, median", lambda v, name=name: _reached(v, name)) for name in COSTS]  # type: ignore[misc]
    for name, (metric, write) in COSTS.items():
        columns += [(TITLES[name], "in all", lambda v, metric=metric, write=write: _mean(_over(v, metric), write))]  # type: ignore[misc]
    columns += [("staleness", "", lambda v: _mean(_known(v, digests, "mean_staleness"), three_digits))]
    columns += [("wasted work", "", lambda v: _mean(_known(v, digests, "wasted"), percent))]
    columns += [("effective time", "", lambda v: _mean([found.effective for found in _times(v, digests)], percent))]
    rows = [[cell(variant) for _, _, cell in columns] for variant in variants]
    used = [place for place in range(len(columns)) if any(row[place][1] or not place for row in rows)]
    return {
        "columns": [{"title": columns[place][0], "group": columns[place][1]} for place in used],
        "rows": [[row[place] for place in used] for row in rows],
    }


def _over(variant: Variant, metric: str) -> list[float]:
    return [value for run in variant.runs for value in final(run, metric)]


def _known(variant: Variant, digests: Mapping[str, Digest], name: str) -> list[float]:
    return [value for run in variant.runs if (value := getattr(digests[str(run.path)], name)) is not None]


def _times(variant: Variant, digests: Mapping[str, Digest]) -> list[Diagnosis]:
    return [found for run in variant.runs if (found := digests[str(run.path)].time)]


def _mean(values: Sequence[float], write: Callable[[float], str]) -> Cell:
    return (write(fmean(values)), short(fmean(values))) if values else ("-", None)


def _spread(variant: Variant, metric: str, write: Callable[[float], str], share: bool = False) -> Cell:
    values = _over(variant, metric)
    if len(values) < 2:
        return _mean(values, write)
    ends = f"{100 * fmean(values):.1f} ± {100 * stdev(values):.1f} %" if share else f"{fmean(values):.4g} ± {stdev(values):.2g}"
    return ends, short(fmean(values))


def _reached(variant: Variant, name: str) -> Cell:
    """`~3 min` where evaluations are sparse; `3 min (4/5)` where one of five missed, `not reached` where most did."""
    spent, hits = at_target(variant, name), sum(bool(run.info.get("target_reached")) for run in variant.runs)
    if spent == inf:
        return ("not reached", None)
    some = f" ({hits}/{len(variant.runs)})" if hits < len(variant.runs) else ""
    return (("~" if sparse(variant) else "") + COSTS[name][1](spent) + some, short(spent))


def _each(variants: Sequence[Variant], digests: Mapping[str, Digest]) -> dict[str, Any]:
    """A row a run."""
    titles = ["variant", "seed", "accuracy", "loss", "rounds", "time", "bytes", "updates", "ended by", "wall time", "hash", "folder"]
    kind = accuracy_of([run for variant in variants for run in variant.runs]) or ""
    writes: list[tuple[str, Callable[[float], str]]] = [(kind, percent), ("test/loss", lambda loss: f"{loss:.4g}")]
    writes += [COSTS[name] for name in ("round", "seconds", "bytes", "updates")]
    rows = []
    for variant in variants:
        for run in variant.runs:
            wall = float(run.info.get("wall_seconds") or 0.0)
            seed = run.info.get("seed")
            row: list[Cell] = [(variant.name, None), (str(seed), seed)]
            row += [_mean(final(run, metric), write) for metric, write in writes]
            row += [(str(run.info.get("reason") or ""), None), (duration(wall), short(wall))]
            rows.append([*row, (str(run.info.get("hash") or "")[:6], None), (run.path.name, None)])
    return {"columns": [{"title": title, "group": ""} for title in titles], "rows": rows}


def parameters(run: RunFolder) -> dict[str, str]:
    """The settings in force that can change a result, but seeds; a part's name at the part's own key."""
    found = {key.removesuffix(".name"): value for key, value in run.parameters.items() if key not in ("name", "task.seed")}
    return {key: value for key, value in found.items() if key.partition(".")[0] not in QUIET}


def _settings(variants: Sequence[Variant]) -> dict[str, Any]:
    """The settings that differ between variants, a column a variant, and those that all have in common.

    What is a part's own is not told where another part stands in its place.
    """
    values = [[parameters(run) for run in variant.runs] for variant in variants]
    every = [one for own in values for one in own]
    differ = list[str]()
    for key in dict.fromkeys(key for one in every for key in one):
        found = {one.get(key) for one in every}
        if len(found - {None}) > 1 or (None in found and not any(key.startswith(f"{above}.") for above in differ)):
            differ.append(key)
    heads = list(dict.fromkeys(key.partition(".")[0] for key in differ))
    differ.sort(key=lambda key: heads.index(key.partition(".")[0]))  # all of the strategy together, wherever a variant has its own
    rows = [[(", ".join(dict.fromkeys(one.get(key, "-") for one in own)), None) for own in values] for key in differ]
    common = [
        [(key, None), (value, None)] for key, value in (every[0] if every else {}).items() if all(one.get(key) == value for one in every)
    ]
    return {"keys": differ, "rows": rows, "common": common}


# Data and graphs


def _graphs(variants: Sequence[Variant]) -> dict[str, Any]:
    """Places of nodes and who hears whom; of very many edges some, evenly."""
    different = graphs_of(variants)
    chosen = most_unlike([[float(graph["gap"]), len(graph["hearer"]), float(moving)] for _, graph, moving in different], GRAPHS)
    found = []
    for names, graph, moving in (different[place] for place in chosen):
        edges = sorted({(min(edge), max(edge)) for edge in zip(graph["hearer"].tolist(), graph["sender"].tolist(), strict=True)})
        shown = [edges[place] for place in evenly(len(edges), EDGES)]
        less = f"; {count(len(shown))} of {count(len(edges))} edges are drawn" if len(shown) < len(edges) else ""
        about = f"{count(int(graph['nodes']))} nodes, {count(len(edges))} edges, spectral gap {float(graph['gap']):.3g}"
        about += ("; round 1" if moving else "") + less
        at = [[round(float(x), 3), round(float(y), 3)] for x, y in places(graph)]
        found.append({"name": names, "about": about, "at": at, "edges": shown})
    return {"maps": found, "note": some_of(len(found), len(different), "different graphs")[2:]}


def _labels(variants: Sequence[Variant]) -> dict[str, Any]:
    """Which labels lie on which clients: whole per cents [clients, labels] and samples a client; of many, neighbours together."""
    different = splits_of(variants)
    features = [[float(counts.sum(1).std()), float((counts > 0).mean())] for _, counts, _ in different]
    found = []
    for name, counts, nodes in (different[place] for place in most_unlike(features, MAPS)):
        shares, sizes = in_order(counts)
        starts = np.unique(np.linspace(0, shares.shape[1], min(LABELS, shares.shape[1]), endpoint=False).astype(np.int64))
        together = np.add.reduceat(shares, starts, axis=1)
        about = f"{count(nodes)} clients, {count(counts.shape[1])} labels"
        about += "; clients sorted by their commonest label, neighbours averaged" if len(shares) < nodes else ""
        about += "; neighbouring labels added up" if len(starts) < shares.shape[1] else ""
        whole = np.rint(together).astype(int).tolist()
        found.append({"name": name, "about": about, "shares": whole, "sizes": [short(one) for one in sizes], "starts": starts.tolist()})
    return {"maps": found, "note": some_of(len(found), len(different), "different splits")[2:]}
