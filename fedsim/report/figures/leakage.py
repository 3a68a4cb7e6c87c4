"""leakage.png: images, and what was recovered of them from messages."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.report.style import Variant, figure, most_unlike

MOST = 8  # images side by side, and rows of recovered ones


class Row(NamedTuple):
    """Images [k, ...] side by side: what stands to their left, and below each."""

    title: str
    images: NDArray[np.float64]
    below: Sequence[str] = ()


def rows_of(variants: Sequence[Variant]) -> list[Row]:
    """Of variants' first runs the last attack, or all attacks where there is one variant; originals stand above those of the same."""
    rows: list[Row] = []
    found = {variant.name: attacks for variant in variants if (attacks := variant.runs[0].arrays("leakage"))}
    if len(found) == 1:
        shown = [(f"round {attack['round']}", attack) for attacks in found.values() for attack in attacks[-MOST:]]
    else:
        last = [(name, attacks[-1]) for name, attacks in found.items()]
        shown = [last[place] for place in most_unlike([[float(attack["psnr"].mean())] for _, attack in last], MOST)]
    before: NDArray[np.float64] | None = None
    for title, attack in shown:
        if before is None or not np.array_equal(before, attack["original"]):
            before = attack["original"]
            rows.append(Row("original", before))
        below = [f"{psnr:.1f} dB, {ssim:.2f}" for psnr, ssim in zip(attack["psnr"], attack["ssim"], strict=True)]
        rows.append(Row(title, attack["found"], below))
    return rows


def draw_leakage(file: Path, variants: Sequence[Variant]) -> bool:
    """Originals above what was recovered, with PSNR and SSIM; False where no run was attacked."""
    rows = rows_of(variants)
    if not rows:
        return False
    columns = min(MOST, max(len(row.images) for row in rows))
    low = min(float(row.images.min()) for row in rows)
    high = max(float(row.images.max()) for row in rows)
    with figure(file, len(rows), columns, (1.4 + 0.9 * columns, 1.04 * len(rows))) as (_, panels):
        for panel in panels.flat:
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[:].set_visible(False)
        for row, line in zip(rows, panels, strict=True):
            line[0].set_ylabel(fill(row.title, 16), rotation=0, ha="right", va="center")
            for place, (panel, image) in enumerate(zip(line, row.images, strict=False)):
                _show(panel, image, low, high)
                panel.set_xlabel(row.below[place] if row.below else "", fontsize=7)
    return True


def _show(panel: Any, image: NDArray[np.float64], low: float, high: float) -> None:
    """An image [height, width] or [channels, height, width]; three channels are colours, of others the mean is shown."""
    if image.ndim == 3 and len(image) == 3:
        panel.imshow(np.moveaxis((image - low) / max(high - low, 1e-12), 0, -1), interpolation="nearest")
    else:
        grey = image if image.ndim == 2 else image.mean(0)
        panel.imshow(grey, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
