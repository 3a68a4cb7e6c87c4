"""Models as policies: what comes of the episodes that they act in."""

# B: episodes, S: numbers of a state

from typing import ClassVar

import torch
from torch import Tensor, nn

from fedsim.data.environments import Environment


class Rollout(nn.Module):
    """From the states that episodes begin in [B, S] to [B, 2]: return of each episode, and 1 where it was a success, else 0.

    The action with the largest output of the policy is taken. An episode that is over stays as it is while others go on.
    """

    differentiable: ClassVar[bool] = False
    outputs: ClassVar[int] = 2

    def __init__(self, policy: nn.Module, environment: Environment) -> None:
        super().__init__()
        self.policy, self.environment = policy, environment

    def forward(self, state: Tensor) -> Tensor:
        world = self.environment
        total = torch.zeros_like(state[..., 0])
        over = total != 0
        for _ in range(world.limit):
            after, reward, ends = world.step(state, self._action(state))
            total = total + reward.masked_fill(over, 0)
            state = torch.where(over[..., None], state, after)
            over = over | ends
        return torch.stack([total, world.success(state, over).to(total.dtype)], -1)

    def _action(self, state: Tensor) -> Tensor:
        """int64 [B]"""
        scores: Tensor = self.policy(self.environment.seen(state))
        if scores.shape != (len(state), self.environment.actions):
            due = f"one output for each of the {self.environment.actions} actions"
            raise ValueError(f"a policy has {due}, [B, {self.environment.actions}], not {list(scores.shape)}")
        return scores.argmax(-1)
