"""AReaL: Fu et al. 2025, "AReaL: A Large-Scale Asynchronous Reinforcement Learning System for Language Reasoning",
https://arxiv.org/abs/2505.24298: clients act in episodes all the time, and the server's PPO learns from those of older policies."""

# m: messages, B: episodes a job, E: episodes of a merge, T: steps of an episode at most, O: numbers seen, d: parameters

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim import Inbox, Local, Rows, Schedule, Strategy, setting
from fedsim.base.clock import Ints
from fedsim.base.devices import sent
from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, permutation
from fedsim.method.optimizers import Adam
from fedsim.method.rollout import STEPS, acted, begun, blank, chances, environment, kept
from fedsim.schedule import Buffered
from fedsim.settings.values import Constant
from fedsim.task.task import Task


@dataclass(frozen=True)
class Areal(Strategy):
    """Clients send episodes, the server takes PPO's steps on those of a merge; `max_staleness` of the schedule bounds how old they are.

    In the paper's symbols; pi_behav had taken an action when it was taken, pi_prox is the policy that a merge begins with:

        client:  a_t ~ pi_behav(. | s_t), by lot, to the end of each episode; it sends s_t, a_t, log pi_behav(a_t | s_t), r_t
        server:  A_t = sum of rewards from t on, less its mean over the merge's episodes at t, over its deviation at all steps
                 J = mean of w_b min(u A, clip(u, 1 - eps, 1 + eps) A),  u = pi / pi_prox,  w_b = pi_prox / pi_behav, a constant
                 Adam along J, on `minibatches` of the episodes, `epochs` times

    `naive` is PPO with pi_behav in the place of pi_prox: w_b = 1. There is no critic, as in the paper's runs. With `interrupt` a client
    asks for the newest policy after so many steps: episodes that are over are sent, the others go on under it, and each step keeps the
    probability that its own policy gave it. Such episodes take several jobs, and it is these whose age `max_staleness` bounds, not that
    of an episode's first step: `rollout/age` says how old that was. Tests, and metrics, take the likeliest action.
    """

    name: ClassVar[str] = "areal"
    source: ClassVar[str] = "Fu et al. 2025"
    one_hearer: ClassVar[bool] = True
    weighs: ClassVar[bool] = False
    forward_only: ClassVar[bool] = True  # of the task's loss

    schedule: Schedule = field(default_factory=Buffered)
    objective: Literal["decoupled", "naive"] = setting("decoupled", "about which policy steps are clipped: pi_prox, or pi_behav")
    episodes: int = setting(8, "that a client acts in at once, from first states of its own", ge=1)
    interrupt: int | None = setting(None, "steps after which a client takes the newest policy; by default its episodes end before", ge=1)
    epochs: int = setting(4, "passes over the episodes of a merge", ge=1, le=10**4)
    minibatches: int = setting(4, "steps a pass", ge=1, le=10**4)
    clip: float = setting(0.2, "of the ratio u (eps)", gt=0)
    cap: float | None = setting(None, "steps whose w_b is above count for nothing (the authors' code had 5)", gt=0)
    discount: float = setting(1.0, "of a reward, a step", ge=0, le=1)
    lr: float = setting(3e-4, "of Adam", gt=0)

    def __post_init__(self) -> None:
        self.trained(1, self.episodes, Constant(1.0))
        if self.privacy is not None:
            raise SettingError("privacy", f"is of updates, and clients of `{self.name}` send their episodes")
        if not self.uplink.lossless:
            raise SettingError(
                "uplink", f"`{self.uplink.name}` changes numbers, and clients of `{self.name}` send actions and lengths of episodes"
            )

    def start(self, x: Tensor, task: Task) -> Rows:
        """`told` [1, 3]: of the last merge the mean return, the age of the oldest step, the largest w_b."""
        environment(task, self.name)
        return {"model": x, "told": x.new_zeros(len(x), 3)} | Adam().moments(x)

    def remembered(self, x: Tensor, task: Task) -> Rows:
        return {} if self.interrupt is None else blank(task, x, self.train.batch_size(task))

    def effort(self, state: Rows, task: Task) -> tuple[Ints, Ints]:
        limit = environment(task, self.name).limit
        steps = torch.full((task.nodes,), min(limit, self.interrupt or limit)).numpy()
        return steps, steps * self.train.batch_size(task)

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        x, task = received["model"], local.task
        batch = local.drawn(torch.arange(len(x), device=x.device), fold(local.key, "first"))
        before = dict(memory) or blank(task, x, batch.weight.shape[1])
        before = begun(before, batch.inputs, sent(torch.from_numpy(local.rounds), x.device))
        limit = before["reward"].shape[2]
        after, over = acted(task, x, local.key, before, batch.weight > 0, min(limit, self.interrupt or limit))
        done = kept(over, after)
        return {name: done[name] for name in ("length", "born", *STEPS)}, kept(~over, after) if memory else {}

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        task, length, actions = inbox.task, inbox["length"].flatten(), inbox["action"].flatten(0, 1)
        if task is None:
            return state
        world = environment(task, self.name)
        made = ((actions >= 0) & (actions < world.actions) & (actions == actions.floor())).all(1)  # by attackers may be none
        there = (made & (length >= 1) & (length <= world.limit)).nonzero()[:, 0]
        if not len(there):
            return state
        length, born = length[there], inbox["born"].flatten()[there]
        seen, action, behaviour, reward = (inbox[name].flatten(0, 1)[there] for name in STEPS)  # [E, T, O], and [E, T] each
        live = torch.arange(reward.shape[1], device=length.device) < length[:, None]
        A, y = advantages(reward, live, self.discount), state["model"].clone()

        def log(x: Tensor, at: Tensor) -> Tensor:
            """[e, T]: log pi(a_t | s_t) of the episodes at these places."""
            return chances(task, task.layout.views(x), seen[at]).gather(-1, action[at].long()[..., None])[..., 0]

        prox = behaviour if self.objective == "naive" else log(y[0], torch.arange(len(there), device=y.device))
        w_b = (prox - behaviour).exp()
        told = torch.stack([reward.sum(1).mean(), inbox.round - born.min(), w_b.where(live, 0).max()])[None]
        w_b = w_b if self.cap is None else w_b.where(w_b <= self.cap, 0)
        moments = {name: state[name] for name in Adam().moments(y[:0])}
        for epoch in range(self.epochs):
            order = permutation(fold(inbox.shared[0], "areal", inbox.round, epoch), len(there))
            for at in order.tensor_split(min(self.minibatches, len(there))):
                with torch.enable_grad():
                    x = y.detach().requires_grad_()
                    u = (log(x[0], at) - prox[at]).exp()
                    J = surrogate(u, A[at], self.clip, w_b[at])[live[at]].mean()
                    slope = torch.autograd.grad(-J, x)[0]
                Adam().move(y, slope, moments, self.lr)
        return state | moments | {"model": y, "told": told.to(y.dtype)}

    def measure(self, state: Rows, task: Task) -> dict[str, float]:
        return dict(zip(("rollout/return", "rollout/age", "rollout/weight"), state["told"][0].tolist(), strict=True))


def surrogate(u: Tensor, A: Tensor, clip: float, w_b: Tensor) -> Tensor:
    """w_b min(u A, clip(u, 1 - eps, 1 + eps) A), elementwise."""
    return w_b * torch.minimum(u * A, u.clamp(1 - clip, 1 + clip) * A)


def advantages(reward: Tensor, live: Tensor, discount: float) -> Tensor:
    """[E, T]: rewards from a step on, less their mean over all episodes at that step (0 of one that is over), over their deviation.

    reward [E, T], 0 where not `live`, bool [E, T].
    """
    found, ahead = list[Tensor](), torch.zeros_like(reward[:, 0])
    for now in reward.unbind(1)[::-1]:
        ahead = now + discount * ahead
        found.append(ahead)
    G = torch.stack(found[::-1], 1)
    A = G - G.mean(0)
    return A / ((A[live] - A[live].mean()).square().mean().sqrt() + 1e-8)
