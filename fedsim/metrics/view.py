"""What an evaluation looks at, computed once for all metrics."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from fedsim.base.keys import below, fold
from fedsim.data.shift import Gathered, shifted
from fedsim.method.strategy import Strategy
from fedsim.method.train import Train
from fedsim.models.pure import evaluation
from fedsim.task.task import SOME, Task, decoded, picked

PROBES = 100  # test samples on which a client is judged whose own data are shifted
LOSS, RIGHT = 0, 1  # of what `tests` has
TESTS = "tests"  # what nodes say of the model that they hear, on their own test samples


class View:
    """The models [h, d] at one evaluation (a server's one, or one a peer), with what several metrics need computed once.

    `buffers` [h, b] are the models' running statistics, by default the first ones; `round` is what shifts that change go by. `strategy`
    with its codecs and privacy is what messages about these models go through, `key` (int64 [1]) the one that their jobs share. What
    takes long says where it is (`say`). `nodes` [h]: whose models these are, where some peers are lost; `home` [n]: which one each node
    hears, where that is an edge server's. `personal` gives the models
    [k, d] that nodes [k] keep for themselves, and their running statistics [k, b]; None: none, or they lie elsewhere. `tuned` gives
    those models, or the one that nodes hear, after training of their own, which nobody keeps. `told` is what nodes say that lies
    with them, by kind: float64 [3, n], of each how many samples, and the sums of their losses and of those that are right; 0 of a node
    that has not answered; `ask` has them train as a metric says, and gives the same of what comes of it. `arrays` are what metrics
    leave for the run's folder, by file and name.

    Metrics of one's own may rely on: `task`, `models`, `buffers`, `round`, `tests`, `tallies`, `clients`, `client_losses`, `averaged`,
    `predict`, `passes`, `test_outputs`, `outputs`, `models_of`, and may write `arrays`.
    """

    def __init__(
        self,
        task: Task,
        models: Tensor,
        round: int = 0,
        slab: int = 4096,
        buffers: Tensor | None = None,
        strategy: Strategy | None = None,
        key: Tensor | None = None,
        say: Callable[[str], None] = lambda _: None,
        nodes: Tensor | None = None,
        personal: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
        tuned: Callable[[Train, Tensor], tuple[Tensor, Tensor]] | None = None,
        home: Tensor | None = None,
        told: Mapping[str, Tensor] | None = None,
        ask: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.task, self.models, self.round, self.slab, self.say = task, models, round, slab, say
        self.personal, self.tuned, self.told, self.ask = personal, tuned, told or {}, ask
        self.buffers = task.first_buffers.expand(len(models), -1) if buffers is None else buffers
        self.strategy = Strategy() if strategy is None else strategy
        self.key = torch.zeros(1, dtype=torch.int64, device=models.device) if key is None else key
        self.place = home  # of each node's model, -1: none
        if nodes is not None:
            self.place = torch.full((task.nodes,), -1, device=models.device).index_copy_(
                0, nodes, torch.arange(len(nodes), device=nodes.device)
            )
        self.keeps_clients = False  # also where a later evaluation follows
        self.arrays: dict[str, dict[str, NDArray[Any]]] = {}

    @torch.no_grad()
    def predict(self, model: Tensor, buffers: Tensor) -> tuple[Tensor, Tensor]:
        """Of one model [d] with its statistics [b] on the test samples: loss and right or wrong (nan without classes), float64 [M]."""
        losses, right = [], []
        for outputs, targets in self.passes(model, buffers):
            losses.append(self.task.loss(outputs, targets).double())
            correct = self.task.loss.correct(outputs, targets)
            right.append(torch.full_like(losses[-1], torch.nan) if correct is None else correct.double())
        return torch.cat(losses), torch.cat(right)

    @torch.no_grad()
    def passes(self, model: Tensor, buffers: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What one model [d] with its statistics [b] makes of the test samples, and their targets, in their order, some at a time."""
        slab, inputs, targets = -(-self.slab // self.task.places), self.task.test_inputs, self.task.test_targets
        for at in range(0, max(1, len(inputs)), slab):
            yield self.outputs(model, buffers, inputs[at : at + slab]), targets[at : at + slab]

    def outputs(self, model: Tensor, buffers: Tensor, inputs: Tensor) -> Tensor:
        """What one model [d] with its statistics [b] makes of samples, in evaluation mode."""
        task = self.task
        with evaluation(task.model):
            found: Tensor = functional_call(task.model, task.layout.views(model) | task.buffers.views(buffers), (decoded(inputs),))
        return found

    @cached_property
    def tests(self) -> tuple[Tensor, Tensor]:
        """Loss and right or wrong of each hearer's model, [h, M] each."""
        losses, right = zip(*(self.predict(*one) for one in zip(self.models, self.buffers, strict=True)), strict=True)
        return torch.stack(losses), torch.stack(right)

    @property
    def silent(self) -> bool:
        """Do test samples lie with nodes, of which none has answered?"""
        return TESTS in self.told and not bool(self.told[TESTS][0].any())

    def mean(self, which: int) -> float:
        """Over all test samples, and all hearers' models."""
        if TESTS not in self.told:
            return float(self.tests[which].mean())
        count, *sums = self.told[TESTS].sum(1)
        return float(sums[which] / count)

    def test_outputs(self, hearer: int = 0) -> tuple[Tensor, Tensor]:
        """What a hearer's model makes of all test samples, [M, ...], and their targets [M, ...]."""
        outputs, targets = zip(*self.passes(self.models[hearer], self.buffers[hearer]), strict=True)
        return torch.cat(outputs), torch.cat(targets)

    @cached_property
    def tallies(self) -> Tensor:
        """int64 [h, 3, C]: of each class, or of each label, how many test targets of it were found, were said, and are there."""
        return torch.stack([self._tally(*one) for one in zip(self.models, self.buffers, strict=True)])

    def _tally(self, model: Tensor, buffers: Tensor) -> Tensor:
        task, parts = self.task, list[Tensor]()
        for outputs, targets in self.passes(model, buffers):
            said = task.loss.predicted(outputs)
            if task.loss.labels:
                there = targets.reshape(len(targets), -1) > 0.5
                said = said.reshape(there.shape)
                parts.append(torch.stack([(said & there).sum(0), said.sum(0), there.sum(0)]))
            else:
                said, there = said[targets >= 0], targets[targets >= 0]  # a place of a sequence may have no target
                each = [one.bincount(minlength=task.classes)[: task.classes] for one in (there[said == there], said, there)]
                parts.append(torch.stack(each))
        return torch.stack(parts).sum(0)

    def models_of(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """What nodes int64 [k] use: their own models [k, d] and running statistics [k, b] where the method keeps some, else what they hear.

        Of peers that are lost, nan.
        """
        if self.personal is not None:
            return self.personal(nodes)
        if len(self.models) == 1:
            return self.models.expand(len(nodes), -1), self.buffers.expand(len(nodes), -1)
        place = self._of(nodes)
        lost = (place < 0)[:, None]
        return self.models[place].masked_fill(lost, torch.nan), self.buffers[place].masked_fill(lost, torch.nan)

    @cached_property
    def averaged(self) -> tuple[float, float]:
        """Mean loss and accuracy (nan without classes) of the mean of the hearers' models."""
        loss, right = self.predict(self.models.mean(0), self.buffers.mean(0))
        return float(loss.mean()), float(right.mean())

    def _of(self, nodes: Tensor) -> Tensor:
        """The places of these nodes' models, -1: none."""
        return nodes if self.place is None else self.place[nodes]

    @cached_property
    def clients(self) -> Tensor:
        """[n]: accuracy that each client gets from the model it hears, on test data like its own.

        Where test samples belong to clients, on those; otherwise the model's test accuracy of each class, weighted by the client's share
        of it: what held-out samples with the client's label mix would give on average, and [k] of `some` clients where they are very
        many. nan for clients without such samples, and where samples have no one class.
        Test samples are seen as the client's own shifts make them in this round: its own, or PROBES drawn by its label mix.
        """
        return self._over(RIGHT)

    @property
    def each_client(self) -> tuple[Tensor, Tensor] | None:
        """Nodes and their `clients`, [k] each, without nan; None where no metric has asked for these, or there are none."""
        if not self.keeps_clients and "clients" not in vars(self):
            return None
        accuracy = self.clients.cpu()
        nodes = torch.arange(self.task.nodes) if len(accuracy) == self.task.nodes else self.task.some().cpu()
        known = ~accuracy.isnan()
        return (nodes[known], accuracy[known]) if known.any() else None

    @cached_property
    def client_losses(self) -> Tensor:
        """The same of the loss; where samples have no one class and belong to no client, a peer's is its model's on all of them."""
        return self._over(LOSS)

    def clients_of(self, ids: range, which: int = RIGHT) -> Tensor:
        """`clients`, or `client_losses`, of the clients with these ids, or of `some` of them."""
        if self.task.test_owner is None and self.task.nodes > SOME and TESTS not in self.told:
            return self.by_labels(self.task.some(ids), which)
        return (self.clients if which == RIGHT else self.client_losses)[ids.start : ids.stop]

    def _over(self, which: int) -> Tensor:
        if TESTS in self.told:
            told = self.told[TESTS]
            return told[1 + which] / told[0]
        found, task = self.tests[which], self.task
        if task.test_owner is None:
            return self.by_labels(task.some(), which)
        own = (task.test_owner >= 0).nonzero()[:, 0]
        own = own[self._of(task.test_owner[own]) >= 0]
        who = task.test_owner[own]
        values = self._seen_by(own, who, which) if task.shifts else found[self._of(who) if len(found) > 1 else who * 0, own]
        total = torch.zeros(task.nodes, dtype=torch.float64, device=who.device).index_add_(0, who, values)
        return total / who.bincount(minlength=task.nodes)

    def by_labels(self, nodes: Tensor, which: int = RIGHT) -> Tensor:
        """float64 [k]: accuracy, or loss, of nodes [k] by their label mixes, as in `clients`."""
        right, task = self.tests[which], self.task
        if which == LOSS and not task.labelled and len(right) > 1 and not task.shifts:
            place = self._of(nodes)
            return right.mean(1)[place].where(place >= 0, torch.nan)
        if not task.labelled or task.elsewhere:
            return right.new_full((len(nodes),), torch.nan)
        hits = right.new_zeros(len(right), task.classes).index_add_(1, task.test_targets, right)
        seen = task.test_targets.bincount(minlength=task.classes)
        mix = task.mixes(nodes).double() * (seen > 0)
        accuracy = hits / seen.clamp(min=1)
        found = (mix * (accuracy if len(right) == 1 else accuracy[self._of(nodes)])).sum(1) / mix.sum(1)
        for at in torch.split(self._shifted(nodes, mix), 4096) if task.shifts else ():
            found[at] = self._probed(nodes[at], mix[at], seen, which)
        return found.where(self._of(nodes) >= 0, torch.nan)

    def _shifted(self, nodes: Tensor, mix: Tensor) -> Tensor:
        """int64: which of the nodes (mix [n, C]) have samples, and shifted ones."""
        where = torch.zeros_like(mix[:, 0], dtype=torch.bool)
        for one in self.task.shifts:
            where |= one.nodes[nodes]
        return (where & (mix.sum(1) > 0)).nonzero()[:, 0]

    def _probed(self, nodes: Tensor, mix: Tensor, seen: Tensor, which: int) -> Tensor:
        """float64 [nodes]: loss or accuracy on PROBES test samples each, whose labels are spread as mix [nodes, C], drawn by key."""
        task, probe = self.task, torch.arange(PROBES, device=mix.device)
        ends = mix.cumsum(1) / mix.sum(1, keepdim=True)
        middle = ((probe.double() + 0.5) / PROBES).expand(len(nodes), -1).contiguous()
        label = torch.searchsorted(ends, middle, right=True).clamp(max=mix.shape[1] - 1)
        by_class, first = task.test_targets.argsort(stable=True), seen.cumsum(0) - seen
        lot = below(fold(task.shifts[0].key, "probe", nodes[:, None], probe), 1, seen[label])[..., 0]
        return self._seen_by(by_class[first[label] + lot].flatten(), nodes.repeat_interleave(PROBES), which).view(-1, PROBES).mean(1)

    @torch.no_grad()
    def _seen_by(self, tests: Tensor, nodes: Tensor, which: int) -> Tensor:
        """float64 [k]: loss, or right or wrong of test samples as their nodes have them, each by the model that its node hears."""
        task, right = self.task, torch.zeros(len(tests), dtype=torch.float64, device=tests.device)
        for hearer, (model, buffers) in enumerate(zip(self.models, self.buffers, strict=True)):
            mine = (self._of(nodes) == hearer if len(self.models) > 1 else nodes >= 0).nonzero()[:, 0]
            for at in torch.split(mine, self.slab) if len(mine) else ():
                inputs, targets = picked(task.test_inputs, tests[at])[:, None], task.test_targets[tests[at]][:, None]
                # After those of training, so that no test sample has the number of a training sample
                number, rounds = len(task.inputs) + tests[at][:, None], torch.full_like(at, self.round)
                seen = shifted(task.shifts, Gathered(inputs, targets, number, nodes[at], rounds))
                outputs = self.outputs(model, buffers, seen.inputs[:, 0])
                found = (task.loss if which == LOSS else task.loss.correct)(outputs, seen.targets[:, 0])
                right[at] = torch.nan if found is None else found.double()
        return right
