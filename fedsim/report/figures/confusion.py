"""confusion.png: how many samples of each class are taken for each other one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedsim.report.style import Variant, figure, most_unlike, some_of

MOST = 6  # matrices side by side
WRITTEN = 15  # classes up to which counts and names are written


def draw_confusion(file: Path, variants: Sequence[Variant]) -> bool:
    """The last matrix of each variant's first run, each row's shares as shades; False where no run has one."""
    found = [(variant.name, kept[-1]) for variant in variants if (kept := variant.runs[0].arrays("confusion"))]
    if not found:
        return False
    shares = [one["counts"] / np.maximum(one["counts"].sum(1, keepdims=True), 1) for _, one in found]
    chosen = most_unlike([[float(np.trace(share))] for share in shares], MOST)
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    with figure(file, rows, columns, (4.2 * columns, 4.0 * rows)) as (picture, panels):
        for panel in panels.flat[len(chosen) :]:
            panel.set_visible(False)
        for place, panel in zip(chosen, panels.flat, strict=False):
            (name, one), share = found[place], shares[place]
            image = panel.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
            panel.grid(visible=False)
            panel.set(title=f"{name}, round {one['round']}", xlabel="said", ylabel="is")
            if len(share) <= WRITTEN:
                panel.set_xticks(range(len(share)), one["names"], rotation=90)
                panel.set_yticks(range(len(share)), one["names"])
                for (row, column), count in np.ndenumerate(one["counts"]):
                    shade = "white" if share[row, column] > 0.5 else "black"
                    panel.text(column, row, str(count), ha="center", va="center", fontsize=6, color=shade)
        note = some_of(len(chosen), len(found))
        picture.colorbar(image, ax=list(panels.flat), shrink=0.7, label=f"share of the class{note}")
    return True
