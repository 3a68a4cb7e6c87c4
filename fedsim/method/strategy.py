"""What a node computes and how a hearer merges: the base of every method."""

# h: hearers, m: messages (one row each), n: nodes, d: parameters

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.errors import SettingError
from fedsim.base.rows import Rows
from fedsim.codecs import Codec, Identity
from fedsim.method.inbox import Inbox, State
from fedsim.method.local import Local
from fedsim.method.privacy import Privacy
from fedsim.method.train import Train
from fedsim.schedule import Rounds, Schedule
from fedsim.settings.part import Part
from fedsim.settings.values import Curve
from fedsim.task.loss import total
from fedsim.task.task import Task
from fedsim.topology.mixing import Keep, Mixing


@dataclass(frozen=True)
class Strategy(Part):
    """One method. Methods are pure functions on rows, settings are frozen, nothing is kept on self.

    `train`, `schedule`, the codecs and `privacy` hold the paper's defaults; a scenario sets them with its own top-level keys.
    """

    slot: ClassVar[str] = "strategy"
    kind: ClassVar[str] = "server"  # or "peers", for `fedsim list`
    mixed: ClassVar[tuple[str, ...]] = ("model",)  # parts of the state that travel in `mix`
    stochastic: ClassVar[Keep] = "rows"  # which sums of its mixing weights are 1: of rows, or of columns (push-sum)
    symmetric: ClassVar[bool] = False  # its mixing weights have to be: of a matrix from a file that is checked
    combine_first: ClassVar[bool] = False  # peers mix before they take in their own update
    one_hearer: ClassVar[bool] = False  # its merge is a server's: refused under schedules of peers
    shared: ClassVar[bool] = True  # hearers have models that can be judged; else clients' own are, in their place
    architectures: ClassVar[bool] = False  # groups of nodes may have models of their own (`task.models`)
    weighs: ClassVar[bool] = True  # clients by their samples, or by `task.client_weights`, unless a setting `weights` says otherwise
    forward_only: ClassVar[bool] = False  # it asks for no gradient, so that any objective will do
    gradients: ClassVar[int] = 1  # that a local step takes: `world.compute`'s time of a step or sample is that of one

    train: Train = field(default_factory=Train)
    schedule: Schedule = field(default_factory=Rounds)
    uplink: Codec = field(default_factory=Identity)
    downlink: Codec = field(default_factory=Identity)
    crosslink: Codec = field(default_factory=Identity)
    privacy: Privacy | None = None

    def trained(self, steps: int, batch: int | Literal["all"], lr: Curve) -> None:
        """Puts what jobs do, of which a method has settings of its own, into `train`. Raises SettingError where that is set."""
        own = Train(steps=steps, batch=batch, lr=lr)
        if self.train not in (Train(), own):
            raise SettingError("train", f"`{self.name}` does not train; it has `lr` and `batch` of its own, under `strategy`")
        object.__setattr__(self, "train", own)

    def fitted(self, task: Task) -> Self:
        """This method for a task, with codecs that know its models."""
        return replace(self, **{way: getattr(self, way).fitted(task.layout) for way in ("uplink", "downlink", "crosslink")})

    @property
    def copies(self) -> int:
        """Models that a job judges together, as rows."""
        return 1

    def check(self, messages: int) -> None:
        """Raises SettingError where the method can't work with merges that have so many messages at most."""

    def begins(self, steps: float, epochs: float) -> str:
        """A warning `key: ...` where what it is for begins later than a client's so many local steps, or epochs, in all of a run."""
        return ""

    def start(self, x: Tensor, task: Task) -> State:
        """State of the hearers whose first models are x [h, d]; every leaf is [h, ...], or a Table where there is one hearer."""
        return {"model": x}

    def start_local(self, x: Tensor) -> Rows:
        """Memory of nodes that work for the first time; x [k, d] is the first model. {} for stateless clients."""
        return {}

    def remembered(self, x: Tensor, task: Task) -> Rows:
        """`start_local` where shapes are the task's."""
        return self.start_local(x)

    def broadcast(self, state: Rows) -> Rows:
        """What all nodes of a hearer hear, a row a hearer; through the downlink codec."""
        return {"model": state["model"]}

    def packet(self, state: Rows) -> Rows:
        """A row of what one merge tells nodes that follow the state themselves, for its size; {}: they hear what is broadcast.

        What they are handed is still `broadcast`, as it is: a codec of the downlink is run by `merge`. One that missed merges is billed
        for what they told, or for all that is broadcast (and what that codec remembers) where that is less.
        """
        return {}

    def instruct(self, state: Rows, nodes: Tensor) -> Rows:
        """What each of the nodes [k] is told beside that, a row a node; sent as it is."""
        return {}

    def effort(self, state: Rows, task: Task) -> tuple[Ints, Ints] | None:
        """Steps and samples of each node's next job, int64 [n] each, which its time follows; None: those of `train`."""
        return None

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        """The work of jobs: parts to send, and memory of after. Received rows are read only, memory is not. By default plain training."""
        start = received["model"]
        return {"update": local.descend(start).sub_(start)}, memory

    def loss(self, task: Task, outputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """What local gradients descend on one batch: outputs [B, ...], weight [B] (0 is padding)."""
        return total(task, outputs, targets, weight)

    def exposed(self, gradient: Tensor, shared: Tensor) -> Tensor:
        """[k, s]: what messages of one local step with these gradients [k, d] tell, up to a known factor, who knows their rounds' shared
        keys, int64 [k]; before noise and the uplink's codec. It can be differentiated."""
        return gradient

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        """The hearers take in news. The state is handed over: it may be written to and returned."""
        raise NotImplementedError

    def merge_nothing(self, state: Rows) -> Rows:
        """A merge to which no news came."""
        return state

    def mix(self, state: Rows, heard: Rows, mixing: Mixing) -> Rows:
        """Hearers combine what they heard of each other, and what they have themselves."""
        mixed = {}
        for name, rows in heard.items():
            mixed[name] = mixing @ rows
            if rows is not state[name]:  # heard through a lossy codec; nobody hears itself
                mixed[name] += mixing.own(rows) * (state[name] - rows)
        return state | mixed

    def model(self, state: Rows) -> Tensor:
        """[h, d]: what is evaluated."""
        return state["model"]

    def personal(self, received: Rows, memory: Rows, task: Task) -> Tensor | None:
        """[k, d]: models that nodes with this memory, having heard `received` (a row a node each), would use; None: the one they heard."""
        return None

    def measure(self, state: Rows, task: Task) -> dict[str, float]:
        """Numbers of the method's own that each evaluation writes down beside its metrics, by name."""
        return {}
