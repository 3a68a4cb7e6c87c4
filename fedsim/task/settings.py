"""The settings of `task`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fedsim.base.clock import LAST
from fedsim.data.augment import Augment
from fedsim.data.partition import Iid, Partition
from fedsim.data.shift import Shift
from fedsim.data.source import Source
from fedsim.models import Mlp, Model
from fedsim.models.saved import place_of
from fedsim.settings.part import setting
from fedsim.settings.values import PerNode
from fedsim.task.loss import Loss


@dataclass(frozen=True)
class TaskSettings:
    """What is learnt, and how its data lie on the nodes."""

    data: Source = setting(help="where the samples come from")
    partition: Partition = setting(Iid(), "how they are split over the nodes")
    model: Model = setting(Mlp(), "what is trained")
    weights: str | None = setting(None, "the first model's numbers: a safetensors file, or an earlier run; by default drawn by the seed")
    first_model: Literal["shared", "own"] = setting("shared", "of peers: one for all, or each node's own, drawn by the node's key")
    buffers: Literal["average", "local"] = setting("average", "BatchNorm's running statistics: averaged as the model, or each node's own")
    loss: Loss | None = setting(None, "by default by the type of label: cross entropy or squared error")
    shift: tuple[Shift, ...] = setting((), "how nodes' samples differ from the data set's: label swaps, feature skew, drift")
    augment: tuple[Augment, ...] = setting((), "how training samples are changed at random, anew in each epoch: flip, crop, cutout, noise")
    client_weights: PerNode[float] | None = setting(
        None, "of each node, in the place of its samples wherever these say how much it counts: in means and in `weighted` sampling", gt=0
    )
    seed: int | None = setting(None, "holds the split and the first model still while seeds vary; by default the run's seed", ge=0, le=LAST)

    def anchored(self, base: Path) -> "TaskSettings":
        """The same wherever the scenario lies, `base` being its folder: files that it names by their absolute paths."""
        file = None if self.weights is None else place_of(self.weights, base)
        weights = self.weights if file is None else str(file)
        return replace(self, data=self.data.anchored(base), model=self.model.anchored(base), weights=weights)
