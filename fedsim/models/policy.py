"""Models as policies: what comes of the episodes that they act in."""

# B: episodes, S: numbers of a state

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from fedsim.data.environments import Environment

Midway = tuple[Tensor, Tensor, Tensor]  # states [..., B, S], returns so far [..., B], and whether episodes are over, bool [..., B]


class Turn(nn.Module):
    """One step of episodes: the action with the policy's largest output is taken. An episode that is over stays as it is."""

    def __init__(self, policy: nn.Module, environment: Environment) -> None:
        super().__init__()
        self.policy, self.environment = policy, environment

    def forward(self, state: Tensor, total: Tensor, over: Tensor) -> Midway:
        world = self.environment
        scores: Tensor = self.policy(world.seen(state))
        if scores.shape != (len(state), world.actions):
            due = f"one output for each of the {world.actions} actions"
            raise ValueError(f"a policy has {due}, [B, {world.actions}], not {list(scores.shape)}")
        after, reward, ends = world.step(state, scores.argmax(-1))
        return torch.where(over[..., None], state, after), total + reward.masked_fill(over, 0), over | ends


class Rollout(nn.Module):
    """From the states that episodes begin in [B, S] to [B, 2]: return of each episode, and 1 where it was a success, else 0."""

    differentiable: ClassVar[bool] = False
    outputs: ClassVar[int] = 2

    def __init__(self, policy: nn.Module, environment: Environment) -> None:
        super().__init__()
        self.turn = Turn(policy, environment)

    @property
    def environment(self) -> Environment:
        return self.turn.environment

    def forward(self, state: Tensor) -> Tensor:
        return self.rolled(self.turn, state)

    def rolled(self, turn: Callable[[Tensor, Tensor, Tensor], Midway], state: Tensor) -> Tensor:
        """[..., B, 2] from states [..., B, S], of one policy or of several, whose step `turn` is; it ends with the last episode."""
        total = torch.zeros_like(state[..., 0])
        over = total != 0
        seen = not is_functorch_wrapped_tensor(state) and state.device.type == "cpu"  # else nobody waits to look
        for _ in range(self.environment.limit):
            state, total, over = turn(state, total, over)
            if seen and bool(over.all()):
                break
        return torch.stack([total, self.environment.success(state, over).to(total.dtype)], -1)
