"""barrier.png: test loss along straight lines between models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.report.style import Variant, figure

PANELS = {"pairs": "from one peer's model to another's", "to_mean": "from a peer's model to the mean of all"}


def draw_barrier(file: Path, variants: Sequence[Variant]) -> bool:
    """The last lines of each variant's first run between models that differ, thin, and their mean; False where no run has any."""
    found = [(variant, last_apart(kept)) for variant in variants if (kept := variant.runs[0].arrays("barrier"))]
    if not found:
        return False
    with figure(file, 1, len(PANELS), (9.0, 3.6)) as (picture, panels):
        for (name, title), panel in zip(PANELS.items(), panels.flat, strict=True):
            for variant, one in found:
                panel.plot(one["at"], one[name].T, color=variant.colour, linewidth=0.5, alpha=0.3)
                label = f"{variant.name}, round {one['round']}"
                panel.plot(one["at"], one[name].mean(0), color=variant.colour, linestyle=variant.dash, label=label)
            panel.set(title=title, xlabel="way", ylabel="test loss")
        picture.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=1)
    return True


def last_apart(kept: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The last of several evaluations at which models were not yet merged into one; the last of all where they always were."""
    return next((one for one in reversed(kept) if np.ptp(one["pairs"], axis=1).any()), kept[-1])
