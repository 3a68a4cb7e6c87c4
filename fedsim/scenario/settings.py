"""The top of the grammar: every key that a scenario may have, apart from `extends` and the settings of the parts themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, ClassVar, Literal

from fedsim.base.clock import LAST
from fedsim.base.errors import SettingError
from fedsim.base.visible import one_line
from fedsim.codecs import Codec
from fedsim.engines.local import Engine, LocalEngine
from fedsim.method.privacy import Privacy
from fedsim.method.strategy import Strategy
from fedsim.method.train import Train
from fedsim.metrics.metrics import Accuracy, Clients, Metric, Robust, TestLoss
from fedsim.schedule import Schedule
from fedsim.settings.part import setting
from fedsim.settings.values import Bytes, Count, Every, Share, Time
from fedsim.task.settings import TaskSettings
from fedsim.world import World

Block = Count | Literal["rest"]


@dataclass(frozen=True)
class Evaluate:
    """When and what is measured. The mean of `smooth` evaluations confirms that `target` or `stop.accuracy` is reached."""

    every: Every | None = setting(None, "interval; by default 100 times a run if its end is known, else each 10 rounds")
    metrics: tuple[Metric, ...] = setting((Accuracy(), TestLoss(), Clients()), "what is measured")
    target: Share | None = setting(None, "accuracy whose cost is told, where the curve crosses it; by default `stop.accuracy`", ge=0, le=1)
    smooth: int = setting(3, "evaluations whose mean confirms that target, stop.accuracy or stop.loss is reached", ge=1)
    best: str | None = setting(
        None, "metric, such as test/accuracy, whose best evaluation's model is kept beside the last; `test/loss` under `stop.patience`"
    )
    gain: float = setting(0.0, "by how much it must be better than the best one to count", ge=0)

    def __post_init__(self) -> None:
        labels = [one.label for one in self.metrics if isinstance(one, Robust)]
        if len({*labels}) < len(labels):
            raise ValueError("several `robust` metrics need a `label` each")

    def times(self) -> list[Fraction]:
        """Its exact times, for the length of a tick."""
        every = [self.every, *(one.every for one in self.metrics)]
        return [one.seconds for one in every if one is not None and one.seconds]


@dataclass(frozen=True)
class Stop:
    """The first of these that is reached ends the run and is named as its reason."""

    rounds: int | None = setting(None, "rounds; 100 where nothing else is set", ge=1)
    updates: int | None = setting(None, "client updates merged", ge=1)
    steps: int | None = setting(None, "client steps merged", ge=1)
    seconds: Time | None = setting(
        None, "simulated time; who arrives at that very moment is still merged, where a merge is due with it", gt=0
    )
    bytes: Bytes | None = setting(None, "bytes sent, all directions", gt=0)
    wall: Time | None = setting(None, "time of the host", gt=0)
    accuracy: Share | None = setting(None, "test accuracy, mean of the last `evaluate.smooth`", gt=0, le=1)
    loss: float | None = setting(None, "test loss, likewise")
    epsilon: float | None = setting(None, "privacy budget: ends before a merge that could exceed it", gt=0)
    patience: Every | None = setting(None, "rounds or simulated time without an evaluation better than the best one (`evaluate.best`)")

    def __post_init__(self) -> None:
        if all(getattr(self, one.name) is None for one in fields(self)):
            object.__setattr__(self, "rounds", 100)


@dataclass(frozen=True)
class Track:
    """Where MLflow keeps the runs."""

    word: ClassVar[str] = "uri"  # what `track: none` sets

    uri: str | None = setting(
        None, "tracking URI; `none` for no tracking; by default MLFLOW_TRACKING_URI or runs/mlflow.db. Its password is not kept"
    )
    experiment: str | None = setting(None, "by default the scenario's name")
    tags: Mapping[str, str] = setting(factory=dict, help="tags set on every run")
    models: bool = setting(False, "log the last model so that MLflow loads it as a module of PyTorch; some seconds a run")

    def __post_init__(self) -> None:
        for name in ("uri", "experiment"):
            if one_line(getattr(self, name)) != getattr(self, name):
                raise SettingError(name, "a text on one line is due, without signs that can't be seen")


@dataclass(frozen=True)
class Checkpoint:
    """When the state of a run is kept, so that `fedsim resume` goes on from there: also at its end. Seconds are the host's here."""

    word: ClassVar[str] = "every"  # what `checkpoint: none` sets

    every: Every | None = setting(Every(seconds=Fraction(60)), "interval in rounds or in time of the host; `none` for no checkpoints")
    keep: int = setting(2, "how many of the last ones are kept", ge=1)


@dataclass(frozen=True)
class Deploy:
    """How `fedsim serve` serves; nothing else reads it. Seconds are real ones here."""

    listen: str = setting("127.0.0.1:7400", "HOST:PORT; 0.0.0.0 or [::] for all addresses of the machine")
    certificates: str | None = setting(None, "folder with server.pem, server.key and ca.pem, as `fedsim certs` makes it")
    start_with: Count = setting(Count(), "nodes that must be there before the first work: a number, a share or `all`")
    silence: Time = setting(Fraction(60), "a transfer or a worker fails when nothing moved for so long, never because it took long", gt=0)
    job: Time | None = setting(None, "how long a worker that is there may take for a job; by default as long as it takes", gt=0)


@dataclass(frozen=True)
class Sweep:
    """The product of variants, grid, one row of zip, and seeds."""

    variants: Mapping[str, Any] = setting(factory=dict, help="name to partial scenario")
    grid: Mapping[str, Any] = setting(factory=dict, help="dotted key to list")
    zip: Mapping[str, Any] = setting(factory=dict, help="dotted key to list, all of one length")
    seeds: tuple[int, ...] = setting((), "list or range of seeds")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One experiment, every setting in force. Only `task.data` and `strategy` must be written.

    `schedule`, `uplink`, `downlink`, `crosslink`, `privacy` and `train` stand inside `strategy` once read: its paper has the defaults.
    """

    name: str = setting("scenario", "by default the file's stem")
    about: str = setting("", "one sentence for reports")
    seed: int = setting(0, "every random number derives from it", ge=0, le=LAST)
    task: TaskSettings = setting(help="what is learnt")
    strategy: Strategy = setting(help="the method, and what only it knows")
    groups: Mapping[str, Block] = setting(factory=dict, help="named blocks of node ids: a share, a count or `rest`")
    train: Train = setting(factory=Train, help="how a node trains")
    schedule: Schedule | None = setting(None, "who works when; by default the strategy's")
    uplink: Codec | None = setting(None, "how updates travel")
    downlink: Codec | None = setting(None, "how models travel")
    crosslink: Codec | None = setting(None, "how peers' models travel")
    privacy: Privacy | None = setting(None, "what is done to updates so that a model tells little of any client")
    world: World = setting(factory=World, help="how long work and travel take, who is there, what breaks")
    engine: Engine = setting(LocalEngine(), "where it is computed; never changes the question")
    evaluate: Evaluate = setting(factory=Evaluate, help="when and what is measured")
    stop: Stop = setting(factory=Stop, help="when it ends")
    checkpoint: Checkpoint = setting(factory=Checkpoint, help="when its state is kept, for `fedsim resume`")
    track: Track = setting(factory=Track, help="where MLflow keeps the runs")
    deploy: Deploy = setting(factory=Deploy, help="how `fedsim serve` serves it on real machines; `run` ignores it")
    sweep: Sweep = setting(factory=Sweep, help="many runs from one file")
    smoke: Any = setting(None, "partial scenario merged by --smoke")
