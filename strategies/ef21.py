"""EF21: Richtárik, Sokolov, Fatkhullin 2021, "EF21: A New, Simpler, Theoretically Better, and Practically Faster Error Feedback",
https://arxiv.org/abs/2106.05203, Algorithm 2; -SGD, -PP, -BC and -HB: Fatkhullin et al. 2021, "EF21 with Bells & Whistles",
https://arxiv.org/abs/2110.03294; the new step and that of clones: Richtárik, Gasanov, Burlachenko 2024, "Error Feedback Reloaded",
https://arxiv.org/abs/2402.10774; that of rare features: 2023, "Error Feedback Shines when Features are Rare",
https://arxiv.org/abs/2305.15264."""

# n: nodes, m: messages, d: parameters

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from fedsim import Inbox, Local, Rows, Schedule, Strategy, setting
from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.codecs import Codec, TopK
from fedsim.codecs.feedback import Changes, Feedback
from fedsim.method.inbox import State
from fedsim.method.theory import contraction_cost, proven_cost
from fedsim.schedule import Rounds
from fedsim.settings.values import Constant, Count
from fedsim.task.smoothness import smoothness
from fedsim.task.task import Task


@dataclass(frozen=True)
class Ef21(Strategy):
    """Nodes send the compressed change between their gradient and an estimate of it that both ends keep.

    Algorithm 2, in the paper's symbols and order; gamma is `lr`:

        g_i^0 = C(grad f_i(x^0));  g^0 = 1/n sum g_i^0
        for t = 0, 1, ...:
          server:  x^{t+1} = x^t - gamma g^t
          node i:  c_i^t = C(grad f_i(x^{t+1}) - g_i^t), which it sends
                   g_i^{t+1} = g_i^t + c_i^t
          server:  g^{t+1} = g^t + 1/n sum c_i^t

    A round here begins with the nodes' lines and ends with the server's step along the new g; g_i before the first message is 0, so that
    g_i^0 is the same line. EF21-HB steps along v^{t+1} = eta v^t + g^{t+1}; EF21-W has sum w_i in place of 1/n sum. C is the uplink's
    codec, shortened by 1 + omega where it is only right in the mean. Who takes no part keeps its g_i, which counts on;
    one that has not come yet counts with 0. A node learns whether its c_i arrived: what got lost is added at neither end. A lossy
    downlink's codec takes the change of g in the same way, and nodes step themselves; one that missed rounds hears those changes, or x
    and g where that is less. A round to which nothing came tells nothing, and steps on.
    """

    name: ClassVar[str] = "ef21"
    source: ClassVar[str] = "Richtárik et al. 2021; Fatkhullin et al. 2021"
    one_hearer: ClassVar[bool] = True
    weighs: ClassVar[bool] = False

    schedule: Schedule = field(default_factory=lambda: Rounds(cohort=Count()))
    uplink: Codec = field(default_factory=TopK)
    lr: float | Literal["theory", "deterministic"] = setting(
        "theory",
        "step (gamma); theory: the one proven for `batch` and participation as set; deterministic: that of all samples of all nodes",
        gt=0,
    )
    theory: Literal["old", "cloned", "new", "rare"] = setting(
        "old", "1/(L + L_QM xi) of 2021, L_QM of clones, 1/(L + L_AM xi) of 2024, or for features that few nodes have: all of one algorithm"
    )
    multiple: float = setting(1.0, "times the step of theory; papers tune powers of two", gt=0)
    batch: int | Literal["all"] = setting("all", "samples of a gradient (EF21-SGD)", ge=1)
    momentum: float = setting(0.0, "heavy ball (eta): x <- x - lr v, v = eta v + g (EF21-HB)", ge=0, lt=1)
    first: Literal["compressed", "full"] = setting("compressed", "a node's first message: C(grad f_i), or grad f_i (released code)")

    def __post_init__(self) -> None:
        self.trained(1, self.batch, Constant(1.0))
        for way, codec in (("uplink", self.uplink), ("downlink", self.downlink)):
            if isinstance(codec, Feedback) and not isinstance(codec, Changes):  # which `fitted` makes of it
                raise SettingError(way, f"`{self.name}` is this kind of feedback itself; name the codec that is within `{codec.name}`")
            try:
                Changes(codec)
            except ValueError as error:
                raise SettingError(way, str(error)) from error
        told, rounds = not self.downlink.lossless, self.schedule.rounds
        if not rounds and (told or self.first == "full"):
            raise SettingError("downlink" if told else "strategy.first", "needs `rounds`: sizes follow from what a node has heard or sent")
        unproven = "momentum" if self.momentum else "a lossy downlink" if told else "" if rounds else f"schedule `{self.schedule.name}`"
        if self.lr == "theory" and unproven:
            raise SettingError("strategy.lr", f"theory has no step with {unproven}; `deterministic` takes that without, or set a number")
        if not isinstance(self.lr, str) and (self.multiple != 1 or self.theory != type(self).theory):
            raise SettingError(
                f"strategy.{'theory' if self.multiple == 1 else 'multiple'}", "is about the step of theory, and `lr` is a number"
            )

    def fitted(self, task: Task) -> Self:
        fitted = super().fitted(task)
        down = fitted.downlink if fitted.downlink.lossless else Changes(fitted.downlink)
        return replace(fitted, uplink=Changes(fitted.uplink, first=self.first), downlink=down)

    def start(self, x: Tensor, task: Task) -> State:
        """Sums are of float64, as the nodes' estimates are. `step` is the last one, `constants` are L, L_QM or L_AM, and alpha."""
        zeros = torch.zeros_like(x, dtype=torch.float64)
        state = {"model": x, "estimate": zeros, "step": zeros[:, :1].clone(), "weights": self.weights(task)[None]}
        if isinstance(self.lr, str):
            state["constants"] = zeros.new_tensor([self.constants(task)])
        if self.momentum:
            state["velocity"] = zeros.clone()
        return state | ({} if self.downlink.lossless else self.downlink.init({"gradient": x}))

    def weights(self, task: Task) -> Tensor:
        """float64 [n]: of the nodes' estimates in g."""
        return torch.full((task.nodes,), 1 / task.nodes, dtype=torch.float64, device=task.init.device)

    def scaled(self, gradient: Tensor, local: Local) -> Tensor:
        """[m, d]: what the estimates are of."""
        return gradient

    def constants(self, task: Task) -> tuple[float, float, float]:
        """L, L_QM or L_AM, and alpha. Raises SettingError where they aren't known."""
        assert isinstance(self.uplink, Changes)
        alpha, codec = self.uplink.contraction(task.layout.size), self.uplink.inner
        if alpha is None:
            raise SettingError("strategy.lr", f"theory needs the alpha of `{codec.name}`, which is not known; set a number")
        try:
            known = smoothness(task)
        except ValueError as error:
            raise SettingError("strategy.lr", f"theory: {error}; set a number") from error
        if self.theory == "rare":  # errors lie where a node has features: so does what a codec must send
            if type(codec) is not TopK:
                raise SettingError(
                    "strategy.theory",
                    f"the step for rare features is proven for the uplink `topk`, not `{codec.name}`; set `old` or a number",
                )
            alpha = min(1.0, codec.kept(task.layout.size) / known.features)
        each = {"old": known.quadratic_mean, "cloned": known.cloned, "new": known.mean, "rare": known.rare}[self.theory]
        return known.whole, each, alpha

    def packet(self, state: Rows) -> Rows:
        return {} if self.downlink.lossless else {"gradient": state["model"]}

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        """grad f_i(x^{t+1}); the uplink makes c_i^t = C(grad f_i(x^{t+1}) - g_i^t) of it, and keeps g_i^{t+1} = g_i^t + c_i^t."""
        batch, x = next(local.batches(received["model"]))
        return {"gradient": self.scaled(batch.gradient(x), local)}, memory

    def merge(self, state: State, inbox: Inbox) -> State:
        state["estimate"] += state["weights"][:, inbox.sender] @ inbox["gradient"].double()  # g^{t+1} = g^t + 1/n sum c_i^t
        state["step"].fill_(self.step(state, inbox))
        if not self.downlink.lossless:
            told = {"gradient": state["estimate"].to(state["model"].dtype)}
            state |= self.downlink.carry(told, state, fold(inbox.shared[:1], "downlink", inbox.round))[1]
        return self.moved(state)

    def merge_nothing(self, state: State) -> State:
        return self.moved(state)

    def moved(self, state: State) -> State:
        """x^{t+1} = x^t - gamma g^t, along g or what nodes know of it; with momentum along v."""
        x, gamma = state["model"], state["step"]
        g = state["estimate"] if self.downlink.lossless else state["known gradient"]
        if self.momentum:
            g = state["velocity"] = self.momentum * state["velocity"] + g  # v^{t+1} = eta v^t + g^{t+1}
        return state | {"model": x - (gamma * g).to(x.dtype)}

    def step(self, state: State, inbox: Inbox) -> float:
        """gamma. Raises ValueError where theory has none."""
        if not isinstance(self.lr, str):
            return self.lr
        whole, each, alpha = state["constants"][0].tolist()
        xi = contraction_cost(alpha) if self.lr == "deterministic" else proven_cost(alpha, inbox, self.batch == "all")
        return float(self.multiple / (whole + each * xi))

    def measure(self, state: State, task: Task) -> dict[str, float]:
        return {"step": float(state["step"])} | (smoothness(task).numbers() if "constants" in state else {})
