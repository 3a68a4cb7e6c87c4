"""Loss barriers: what lies between models on the straight line from one to the other."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedsim.base.keys import fold, permutation
from fedsim.metrics.metrics import Metric, renewed
from fedsim.metrics.view import View
from fedsim.settings.part import setting
from fedsim.task.statistics import BATCHES

# h: hearers, p: pairs, l: points of a line, ends included


@dataclass(frozen=True)
class Barrier(Metric):
    """How far test loss, and error, rise above the straight line between those of two models, on the straight way from one to the other.

    Between pairs of peers' models, and from models to the mean of all: means and worst. 0: models lie in one basin. Running statistics
    of normalisation layers are taken anew on the way. `barrier/VERSION.npz` has `pairs` [p, l] and `to_mean` [p, l], the losses along
    each line, and `at` [l]: barrier.png. With a server there are no numbers.
    """

    source: ClassVar[str] = "Frankle et al. 2020"

    pairs: int = setting(8, "pairs of models, and as many models beside the mean, by lot, always the same", ge=1)
    points: int = setting(9, "places between two models; each costs a pass over the test samples", ge=1)
    batches: int = setting(BATCHES, "of 128 training samples, that running statistics are taken from", ge=1)

    def measure(self, view: View) -> dict[str, float]:
        if (count := len(view.models)) < 2:
            return {}
        first, second = couples(count, self.pairs)
        mean = (view.models.mean(0), view.buffers.mean(0))
        at = torch.linspace(0, 1, self.points + 2, dtype=torch.float64)
        lines: dict[str, list[Tensor]] = {"pairs": [], "to_mean": []}
        for done, (one, other) in enumerate(zip(first, second, strict=True), 1):
            view.say(f"barrier {done} of {len(first)}")
            here, there = ((view.models[place], view.buffers[place]) for place in (one, other))
            lines["pairs"].append(self._line(view, here, there, at))
            lines["to_mean"].append(self._line(view, here, mean, at))
        found: dict[str, float] = {}
        kept = {"at": at.numpy(), "round": np.array(view.round)}
        for name, values in lines.items():
            losses, errors = torch.stack(values, 1)  # [p, l] each
            kept[name] = losses.numpy()
            for what, along in (("loss", losses), ("error", errors)):
                if not along.isnan().all():
                    height = heights(along, at)
                    found |= {f"barrier/{name}_{what}": float(height.mean()), f"barrier/{name}_{what}_worst": float(height.max())}
        view.arrays["barrier"] = kept
        return found

    def _line(self, view: View, here: tuple[Tensor, Tensor], there: tuple[Tensor, Tensor], at: Tensor) -> Tensor:
        """float64 [2, l]: test loss and error (nan without classes) along the line between two models [d] with their statistics [b]."""
        found = []
        for way in at.tolist():
            model, buffers = (torch.lerp(a, b, way) for a, b in zip(here, there, strict=True))
            if len(buffers):
                buffers = renewed(view, model, buffers, self.batches)
            loss, right = view.predict(model, buffers)
            found.append(torch.stack([loss.mean(), 1 - right.mean()]).cpu())
        return torch.stack(found, 1)


def heights(along: Tensor, at: Tensor) -> Tensor:
    """[p]: the largest of values [p, l] at places `at` [l] of lines less what lies straight between their ends; 0 or more."""
    return (along - torch.lerp(along[:, :1], along[:, -1:], at)).amax(1)


def couples(count: int, wanted: int) -> tuple[list[int], list[int]]:
    """Pairs of different ones of so many, as many as are wanted or there are; every first one is another as long as that can be."""
    order = permutation(fold(0, "barrier"), count).tolist()
    gaps = range(1, min(count // 2, 1 + wanted // count) + 1)
    pairs = [(order[at], order[(at + gap) % count]) for gap in gaps for at in range(count if 2 * gap < count else gap)][:wanted]
    return [one for one, _ in pairs], [other for _, other in pairs]
