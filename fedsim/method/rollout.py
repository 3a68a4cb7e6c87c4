"""Episodes in which policies act by lot, those of many jobs together; one that is not over yet can go on under a newer policy."""

# m: jobs, B: episodes a job, S: numbers of a state, O: numbers that a policy sees of it, T: steps of an episode at most, d: parameters

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, uniform
from fedsim.base.rows import Rows
from fedsim.data.environments import Environment
from fedsim.models.policy import Rollout
from fedsim.models.pure import evaluation
from fedsim.task.task import Task

POLICY = "turn.policy."  # where a Rollout has its policy
STEPS = ("seen", "action", "behaviour", "reward")  # parts with an entry a step


def environment(task: Task, who: str) -> Environment:
    """In which the task's episodes go on. Raises SettingError where samples begin none, or a policy's statistics would have to travel."""
    if not isinstance(task.model, Rollout):
        raise SettingError("task.data", f"`{who}` learns from episodes, and these samples begin none; `cartpole` and `grid_world` do")
    if task.buffers.size:
        raise SettingError("task.model", f"has running statistics, and `{who}` judges policies without theirs")
    return task.model.environment


def blank(task: Task, like: Tensor, episodes: int) -> Rows:
    """Episodes of jobs like models [m, d] that have not begun.

    state [m, B, S]; length [m, B], steps so far; born [m, B], the round that the episode began in; of each step, 0 after `length`,
    seen [m, B, T, O], action, behaviour (log-probability that the action had when it was taken) and reward [m, B, T]. Floats, all.
    """
    assert isinstance(task.model, Rollout)
    world = task.model.environment
    shapes = {"state": task.inputs.shape[1:], "length": (), "born": (), "seen": (world.limit, *world.sees)}
    shapes |= dict.fromkeys(STEPS[1:], (world.limit,))
    return {name: like.new_zeros(len(like), episodes, *shape) for name, shape in shapes.items()}


def begun(episodes: Rows, first: Tensor, round: Tensor) -> Rows:
    """The same, those without a step in states first [m, B, S], born in round [m]."""
    new = episodes["length"] == 0
    state = torch.where(new[..., None], first, episodes["state"])
    return episodes | {"state": state, "born": torch.where(new, round.to(state.dtype)[:, None], episodes["born"])}


def chances(task: Task, x: Mapping[str, Tensor], seen: Tensor) -> Tensor:
    """[..., A]: log-probabilities of the actions under one policy, whose parameters are x by name, that sees [..., O]."""
    assert isinstance(task.model, Rollout)
    given = {name.removeprefix(POLICY): one for name, one in x.items()}
    width = len(task.model.environment.sees)
    with evaluation(task.model):
        scores: Tensor = functional_call(task.model.turn.policy, given, (seen.flatten(0, -1 - width),))
    return scores.log_softmax(-1).view(*seen.shape[: seen.dim() - width], -1)


def acted(task: Task, x: Tensor, key: Tensor, episodes: Rows, there: Tensor, steps: int) -> tuple[Rows, Tensor]:
    """Episodes after `steps` further steps at most under policies x [m, d]; and bool [m, B]: are they over?

    Keys int64 [m] draw the actions. Where `there`, bool [m, B], is not true, is no episode.
    """
    assert isinstance(task.model, Rollout)
    world, params = task.model.environment, task.layout.views(x)
    lead, shape = there.shape, episodes["state"].shape[2:]
    state, length, over, made = episodes["state"].flatten(0, 1), episodes["length"], ~there, list[tuple[Tensor, ...]]()
    for step in range(steps):
        seen = world.seen(state).view(*lead, *world.sees)
        log = vmap(lambda own, what: chances(task, own, what))(params, seen)
        lot = uniform(fold(key, "action", step), lead[1])[..., None]
        action = (log.exp().cumsum(-1)[..., :-1] <= lot).sum(-1)
        after, reward, ends = world.step(state, action.flatten())
        made.append((seen, action.to(x.dtype), log.gather(-1, action[..., None])[..., 0], reward.view(lead)))
        state = torch.where(over.flatten()[:, None], state, after)
        length = length + (~over).to(x.dtype)
        over = over | ends.view(lead) | (length >= world.limit)
        if x.device.type == "cpu" and bool(over.all()):  # else nobody waits to look
            break
    place = torch.arange(world.limit, device=x.device)
    since = place - episodes["length"].long()[..., None]
    new, at = (since >= 0) & (place < length[..., None]), since.clamp(0, len(made) - 1)

    def woven(old: Tensor, steps: list[Tensor]) -> Tensor:
        many = (*at.shape, *[1] * (old.dim() - 3))
        found = torch.stack(steps, 2).gather(2, at.view(many).expand(*at.shape, *old.shape[3:]))
        return torch.where(new.view(many), found, old)

    told = {name: woven(episodes[name], [one[i] for one in made]) for i, name in enumerate(STEPS)}
    return episodes | told | {"state": state.view(*lead, *shape), "length": length}, over & there


def kept(which: Tensor, episodes: Rows) -> Rows:
    """Those of which bool [m, B] is true; the others have not begun."""
    return {name: rows.where(which.view(*which.shape, *[1] * (rows.dim() - 2)), 0.0) for name, rows in episodes.items()}
