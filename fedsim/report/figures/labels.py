"""labels.png: which labels lie on which clients."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.base.text import count
from fedsim.report.style import GREY, Variant, few, figure, most_unlike, some_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
MOST = 200  # clients that get a column each
MAPS = 4  # splits that get a map each


def splits_of(variants: Sequence[Variant]) -> list[tuple[str, Ints, int]]:
    """The different splits among the runs, each with the names of the variants that have it, and its clients.

    One split needs no name. The labels of very many clients are counted for some.
    """
    found: list[tuple[list[str], Ints, int]] = []
    for variant in variants:
        run = variant.runs[0]
        counts = run.label_counts
        if counts is None:
            continue
        for names, other, _ in found:
            if np.array_equal(other, counts):
                names.append(variant.name)
                break
        else:
            found.append(([variant.name], counts, max(len(counts), int(run.info.get("nodes") or 0))))
    return [(few(names) if len(found) > 1 else "", counts, nodes) for names, counts, nodes in found]


def _features(counts: Ints) -> list[float]:
    """In what splits differ to the eye: how unequal sizes are, how much a client has of its commonest label, and of labels at all."""
    sizes = np.maximum(1, counts.sum(1))
    return [float(sizes.std() / sizes.mean()), float((counts.max(1) / sizes).mean()), float((counts > 0).mean())]


def in_order(counts: Ints) -> tuple[Floats, Floats]:
    """Shares of labels [columns, classes] in % and samples a client [columns].

    Up to MOST clients each have a column, in the order of their ids; more are sorted by their commonest label and neighbours averaged.
    """
    sizes = counts.sum(1)
    shares = 100 * counts / np.maximum(1, sizes)[:, None]
    if len(counts) <= MOST:
        return shares, sizes.astype(np.float64)
    order = np.lexsort((-shares.max(1), shares.argmax(1)))
    starts = np.linspace(0, len(counts), MOST, endpoint=False).astype(np.int64)
    width = np.diff(np.r_[starts, len(counts)])
    return np.add.reduceat(shares[order], starts) / width[:, None], np.add.reduceat(sizes[order], starts) / width


def draw_labels(file: Path, variants: Sequence[Variant]) -> bool:
    """Maps of labels over clients under their numbers of samples, of the four splits most unlike; False where no run has labels."""
    different = splits_of(variants)
    splits = [different[place] for place in most_unlike([_features(counts) for _, counts, _ in different], MAPS)]
    if not splits:
        return False
    ratios = {"height_ratios": [1, 3] * len(splits)}
    with figure(file, 2 * len(splits), 1, (9.0, 3.6 * len(splits)), gridspec_kw=ratios) as (picture, panels):
        if len(different) > MAPS:
            picture.suptitle(some_of(MAPS, len(different), "different splits")[2:])
        for place, (names, counts, nodes) in enumerate(splits):
            _map(picture, panels[2 * place, 0], panels[2 * place + 1, 0], names, counts, nodes)
    return True


def _map(picture: Any, top: Any, panel: Any, names: str, counts: Ints, nodes: int) -> None:
    classes = counts.shape[1]
    shares, sizes = in_order(counts)
    sizes_of = counts.sum(1)
    what = f"samples a client: least {count(sizes_of.min())}, median {count(float(np.median(sizes_of)))}, most {count(sizes_of.max())}"
    top.set_title(f"{names}: {what}" if names else what, loc="left")
    top.bar(np.arange(len(sizes)), sizes, 1.0 if len(sizes) > 60 else 0.85, color=GREY)
    top.set_xlim(-0.5, len(sizes) - 0.5)
    top.set_xticks([])
    top.set_ylabel("samples")
    image = panel.imshow(shares.T, aspect="auto", origin="lower", cmap="viridis", vmin=0, vmax=100, interpolation="nearest")
    panel.grid(False)
    panel.set_ylabel("label")
    panel.locator_params(axis="y", nbins=12, integer=True)
    who = count(nodes) if len(counts) == nodes else f"{count(len(counts))} of {count(nodes)}"
    if classes <= 12:
        panel.set_yticks(range(classes))
    panel.set_xlabel("client" if nodes <= MOST else f"{who} clients, sorted by commonest label, neighbours averaged")
    if nodes <= MOST:
        panel.locator_params(axis="x", nbins=12, integer=True)
    else:
        panel.set_xticks([])
    picture.colorbar(image, ax=panel, label="share of its samples (%)", pad=0.01)
