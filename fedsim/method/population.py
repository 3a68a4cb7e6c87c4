"""Many perturbed copies of one model, evaluated together without forming their perturbations (EGGROLL: Sarkar et al. 2025)."""

# k: pairs of members, a x b: a matrix, r: rank, d: parameters, B: samples

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedsim.base.keys import fold, normal
from fedsim.base.rows import Layout
from fedsim.models.integer import IntegerLinear
from fedsim.models.policy import Midway, Rollout
from fedsim.models.pure import evaluation

LossOf = Callable[[Tensor], Tensor]  # of a member's outputs on all samples
TOGETHER = 1 << 22  # numbers of noise that are in memory at once


class Noise:
    """P of a matrix is A B' / sqrt(r) with standard normal A and B, of other parameters standard normal itself, a function of a pair's key.

    Each parameter has its own numbers, by its name; of a matrix (a + b) x r, B's first. `rank` None: all of P is normal.
    """

    def __init__(self, layout: Layout, rank: int | None) -> None:
        self.layout, self.rank = layout, rank

    def low(self, name: str) -> bool:
        """Is this parameter's noise a product?"""
        return self.rank is not None and len(self.layout.shapes[name]) == 2

    def _numbers(self, name: str) -> int:
        shape = self.layout.shapes[name]
        return sum(shape) * (self.rank or 0) if self.low(name) else shape.numel()

    @property
    def together(self) -> int:
        """Pairs that memory has room for."""
        return max(1, TOGETHER // sum(self._numbers(name) for name in self.layout.names))

    def factors(self, name: str, key: Tensor) -> tuple[Tensor, Tensor]:
        """A [k, a, r] / sqrt(r) and B [k, b, r] of keys [k]."""
        assert self.rank is not None
        shape = self.layout.shapes[name]
        rows = normal(fold(key, name), self._numbers(name)).view(len(key), sum(shape), self.rank)
        return rows[:, shape[1] :] * self.rank**-0.5, rows[:, : shape[1]]

    def whole(self, name: str, key: Tensor) -> Tensor:
        """P [k, *shape], formed."""
        if self.low(name):
            a, b = self.factors(name, key)
            return torch.einsum("kar,kbr->kab", a, b)
        return normal(fold(key, name), self._numbers(name)).view(len(key), *self.layout.shapes[name])

    def sum(self, key: Tensor, weight: Tensor) -> Tensor:
        """[d]: sum of weight x P over pairs of keys [k], in their order."""
        total = weight.new_zeros(self.layout.size)
        for keys, weights in zip(torch.split(key, self.together), torch.split(weight, self.together), strict=True):
            total += self.layout.join({name: self._sum(name, keys, weights) for name in self.layout.names})
        return total

    def _sum(self, name: str, key: Tensor, weight: Tensor) -> Tensor:
        if not self.low(name):
            formed = self.whole(name, key).to(weight.dtype)
            return (weight @ formed.flatten(1)).view(formed.shape[1:])
        a, b = (part.to(weight.dtype) for part in self.factors(name, key))
        found: Tensor = (a * weight[:, None, None]).transpose(0, 1).flatten(1) @ b.transpose(0, 1).flatten(1).T
        return found


class Perturbed(nn.Module):
    """x (W + A B')' = x W' + (x B) A': W is shared by all members, A and B are a member's."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.a, self.b = (nn.Parameter(linear.weight.new_zeros(side, rank)) for side in linear.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        out = nn.functional.linear(x, self.linear.weight) + (x @ self.b) @ self.a.T
        return out if self.linear.bias is None else out + self.linear.bias


class Population:
    """Members W + s sigma P of a model, s = 1 and -1. Products are applied where they stand in linear layers, else formed."""

    def __init__(self, model: nn.Module, noise: Noise) -> None:
        self.noise, self.model = noise, copy.deepcopy(model)
        self.place = {name: name for name in noise.layout.names}  # of parameters in this model
        self.layer: dict[str, str] = {}  # of matrices whose noise is not formed
        for path, layer in list(self.model.named_modules()):
            if noise.rank is None or _under(path, "weight") not in self.place:
                continue
            if type(layer) is nn.Linear:
                self._perturb(path, Perturbed(layer, noise.rank))
            elif isinstance(layer, IntegerLinear):
                self._perturb(path, layer.perturbed(noise.rank))

    def _perturb(self, path: str, layer: nn.Module) -> None:
        """Puts a layer that knows members in the place of a linear one, which it has as `linear`, with their `a` and `b`."""
        parent, _, name = path.rpartition(".")
        if path:
            setattr(self.model.get_submodule(parent), name, layer)
        else:
            self.model = layer
        self.layer[_under(path, "weight")] = path
        for own in ("weight", "bias"):
            if _under(path, own) in self.place:
                self.place[_under(path, own)] = _under(path, f"linear.{own}")

    def losses(self, x: Tensor, key: Tensor, sigma: float, inputs: Tensor, loss: LossOf) -> Tensor:
        """[k, 2]: of the members + and - of pairs with keys [k] around x [d], all on the inputs [B, ...]."""
        views, shared, own = self.noise.layout.views(x), dict[str, Tensor](), dict[str, Tensor]()
        for name, place in self.place.items():
            if name in self.layer:
                shared[place] = views[name]
                a, b = self.noise.factors(name, key)
                own[_under(self.layer[name], "a")] = _both(sigma * a.to(x.dtype))
                own[_under(self.layer[name], "b")] = b.to(x.dtype).repeat(2, 1, 1)
            else:
                own[place] = views[name] + _both(sigma * self.noise.whole(name, key).to(x.dtype))

        def member(numbers: Mapping[str, Tensor]) -> Tensor:
            return loss(functional_call(self.model, {**shared, **numbers}, (inputs,)))

        with evaluation(self.model):
            if isinstance(self.model, Rollout):
                found: Tensor = vmap(loss)(self._rolled(self.model, shared, own, inputs))
            else:
                found = vmap(member)(own)
        return found.view(2, len(key)).T

    def _rolled(self, model: Rollout, shared: Mapping[str, Tensor], own: Mapping[str, Tensor], state: Tensor) -> Tensor:
        """[2k, B, 2]: what all members make of episodes that begin in states [B, S], step by step together."""

        def turn(numbers: Mapping[str, Tensor], *midway: Tensor) -> Midway:
            given = {name.removeprefix("turn."): one for name, one in {**shared, **numbers}.items()}
            found: Midway = functional_call(model.turn, given, midway)
            return found

        members = len(next(iter(own.values())))
        return model.rolled(lambda *midway: vmap(turn)(own, *midway), state.expand(members, *state.shape))


def _both(noise: Tensor) -> Tensor:
    return torch.cat([noise, -noise])


def _under(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
