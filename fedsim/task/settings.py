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
from fedsim.settings.part import setting
from fedsim.task.loss import Loss


@dataclass(frozen=True)
class TaskSettings:
    """What is learnt, and how its data lie on the nodes."""

    data: Source = setting(help="where the samples come from")
    partition: Partition = setting(Iid(), "how they are split over the nodes")
    model: Model = setting(Mlp(), "what is trained")
    models: Mapping[str, Model] = setting(factory=dict, help="of groups that have another one, by name: `{phones: logistic}`")
    public: Public | None = setting(None, "samples without labels that all nodes and the server have: so many, or another source")
    buffers: Literal["average", "local"] = setting("average", "BatchNorm's running statistics: averaged as the model, or each node's own")
    loss: Loss | None = setting(None, "by default by the type of label: cross entropy or squared error")
    shift: tuple[Shift, ...] = setting((), "how nodes' samples differ from the data set's: label swaps, feature skew, drift")
    augment: tuple[Augment, ...] = setting((), "how training samples are changed at random, anew in each epoch: flip, crop, cutout, noise")
    seed: int | None = setting(None, "holds the split and the first model still while seeds vary; by default the run's seed", ge=0, le=LAST)

    def anchored(self, base: Path) -> "TaskSettings":
        """The same task wherever the scenario lies: files beside it by their absolute paths."""
        models = {group: model.anchored(base) for group, model in self.models.items()}
        public = self.public and self.public.anchored(base)
        return replace(self, data=self.data.anchored(base), model=self.model.anchored(base), models=models, public=public)
