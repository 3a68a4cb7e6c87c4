"""The settings of `task`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fedsim.base.clock import LAST
from fedsim.data.augment import Augment
from fedsim.data.partition import Iid, Partition
from fedsim.data.public import Public
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
    models: Mapping[str, Model] = setting(factory=dict, help="of groups that have another one, by name: `{phones: logistic}`")
    public: Public | None = setting(None, "samples without labels that all nodes and the server have: so many, or another source")
    weights: str | None = setting(None, "the first model's numbers: a safetensors file, or an earlier run; by default drawn by the seed")
    first_model: Literal["shared", "own"] = setting("shared", "of peers: one for all, or each node's own, drawn by the node's key")
    buffers: Literal["average", "local"] = setting("average", "BatchNorm's running statistics: averaged as the model, or each node's own")
    loss: Loss | None = setting(None, "by default by the type of label: cross entropy or squared error")
    ignore: int | None = setting(None, "class number of a mask's pixels, or a sequence's places, that count for nothing; also -1", ge=0)
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
        models = {group: model.anchored(base) for group, model in self.models.items()}
        public = self.public and self.public.anchored(base)
        data, model = self.data.anchored(base), self.model.anchored(base)
        return replace(self, data=data, model=model, models=models, public=public, weights=weights)
