"""Own strategies: what their functions give back is checked, and `validate` tries them on a few unequal clients for two rounds."""

from pathlib import Path

import pytest
import torch
from launch import call, refused, write
from tools import quadratics, run, steps

import fedsim
from fedsim.base.rows import Rows
from fedsim.method.local import Local
from strategies.fedavg import FedAvg
from strategies.fedprox import FedProx

OWN = '''
from dataclasses import dataclass
import torch
from fedsim.schedule import Schedule
from fedsim import setting
from strategies.fedavg import FedAvg
from strategies.feddyn import FedDyn

@dataclass(frozen=True)
class Undeclared(FedAvg):
    """Remembers what `start_local` does not declare."""
    def local_update(self, received, memory, local):
        start = received["model"]
        return {"update": local.descend(start) - start}, {"last": start}

@dataclass(frozen=True)
class Unremembered(FedAvg):
    """Asks for what `start_local` does not declare."""
    def local_update(self, received, memory, local):
        start = received["model"]
        return {"update": local.descend(start, drift=memory["last"]) - start}, memory

@dataclass(frozen=True)
class Forgetful(FedAvg):
    def start_local(self, x):
        return {"last": torch.zeros_like(x)}
    def local_update(self, received, memory, local):
        start = received["model"]
        return {"update": local.descend(start) - start}, {}

@dataclass(frozen=True)
class Uncut(FedAvg):
    """Rows of all jobs meet those still at work."""
    def local_update(self, received, memory, local):
        x = received["model"].clone()
        drift = torch.ones_like(x)
        for batch, y in local.batches(x):
            y -= local.lr * (batch.gradient(y) + drift)
        return {"update": x - received["model"]}, memory

@dataclass(frozen=True)
class Rebound(FedAvg):
    """Its steps are lost."""
    def local_update(self, received, memory, local):
        x = received["model"].clone()
        for batch, y in local.batches(x):
            y = y - local.lr * batch.gradient(y)
        return {"update": x - received["model"]}, memory

@dataclass(frozen=True)
class Second(FedAvg):
    """Fails where a node comes again."""
    def start_local(self, x):
        return {"times": x.new_zeros(len(x), 1)}
    def local_update(self, received, memory, local):
        start = received["model"]
        if (memory["times"] > 0).any():
            raise IndexError("never twice")
        return {"update": local.descend(start) - start}, {"times": memory["times"] + 1}

@dataclass(frozen=True)
class Mute(FedAvg):
    """Forgets its `return`."""
    def merge(self, state, inbox):
        state["model"] += inbox.mean("update")

@dataclass(frozen=True)
class Flat(FedAvg):
    def merge(self, state, inbox):
        return {"model": state["model"][0] + inbox["update"].mean(0)}

@dataclass(frozen=True)
class Wide(FedAvg):
    def merge(self, state, inbox):
        return {"model": state["model"].double() + inbox.mean("update")}

@dataclass(frozen=True)
class Misnamed(FedAvg):
    def merge(self, state, inbox):
        return {"model": state["model"] + inbox["delta"].mean(0)}

@dataclass(frozen=True)
class Alone(FedAvg):
    def local_update(self, received, memory, local):
        return {"update": local.descend(received["model"])}

@dataclass(frozen=True)
class Deaf(FedAvg):
    def local_update(self, received, memory, local):
        return {"update": received["control"]}, memory

@dataclass(frozen=True)
class Scribbler(FedAvg):
    """Trains where what it received lies."""
    def local_update(self, received, memory, local):
        x = received["model"]
        start = x.clone()
        for batch, y in local.batches(x):
            local.step(y, batch.gradient(y))
        return {"update": x - start}, memory

@dataclass(frozen=True)
class Notes(FedAvg):
    """Writes to its memory, which begins as the first model that all nodes share."""
    def start_local(self, x):
        return {"mean": x}
    def local_update(self, received, memory, local):
        start = received["model"]
        memory["mean"].mul_(0.5).add_(start, alpha=0.25)
        return {"update": memory["mean"] - start}, memory

@dataclass(frozen=True)
class Held(FedAvg):
    """Each client by a pull of its own."""
    def local_update(self, received, memory, local):
        start = received["model"]
        return {"update": local.descend(start, anchor=start, pull=1 / local.counts) - start}, memory

@dataclass(frozen=True)
class Waves(Schedule):
    """Rounds of one's own: all even nodes, then all odd ones."""
    rounds = True
    def staleness_limit(self):
        return 0
    def run(self, fed):
        while fed.running():
            nodes = fed.idle()
            fed.send(nodes[nodes % 2 == fed.round % 2])
            fed.merge(fed.receive())
'''
TEXT = """\
task: {data: digits, partition: {name: dirichlet, alpha: 0.5, nodes: 8}, model: logistic}
strategy: fedavg
train: {batch: 32, lr: 0.1}
stop: {rounds: 2}
track: none
"""


@pytest.fixture
def own(folder: Path) -> str:
    (folder / "tried_parts.py").write_text(OWN)
    return write(folder, TEXT).name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Undeclared", "`local_update` returns memory `last`, which `start_local` does not declare (there is none)"),
        ("Unremembered", "memory has no `last`: `start_local` declares what a node remembers before its first job (there is none)"),
        ("Forgetful", "`local_update` leaves memory `last` out; return it as it was where it does not change"),
        ("Uncut", "inside `batches` rows are cut to the jobs still at work: hand other rows to it too"),
        ("Second", "IndexError: never twice (tried_parts.py:"),
        ("Mute", "`merge` returns NoneType; the state is due"),
        ("Flat", "`merge`: `model` becomes a tensor [650], and was a tensor [1, 650]"),
        ("Wide", "`merge`: `model` becomes float64, and was float32"),
        ("Misnamed", "messages have no `delta`: they have the parts that `local_update` returns (there is `update`)"),
        ("Alone", "`local_update` returns dict; due are two mappings, the parts to send and the memory"),
        ("Deaf", "nodes don't receive `control`: they hear what `broadcast` and `instruct` return (there is `model`)"),
        ("Scribbler", "`local_update` writes to `model`, which it received; due is a copy, `x = received['model'].clone()`"),
    ],
)
def test_what_an_own_strategy_does_wrong_is_named(own: str, name: str, said: str) -> None:
    call("validate", own)
    message = call("validate", own, f"strategy=tried_parts:{name}")
    assert message.exit_code == 2 and message.stderr.startswith("command line: strategy: ") and said in message.stderr
    if name in ("Uncut", "Second"):  # which one client alone, once, does not show
        assert "tried on clients of 1, 3, 4, 9 samples, 2 rounds" in message.stderr
    else:
        assert said in refused("run", own, f"strategy=tried_parts:{name}")


def test_steps_that_are_lost_are_warned_of(own: str) -> None:
    assert (
        "warning   all updates are zero; if steps are lost: rows of `batches` are views"
        in call("validate", own, "strategy=tried_parts:Rebound").stdout
    )
    assert "warning" not in call("validate", own, "strategy=tried_parts:Held").stdout


def test_memory_may_be_written_to_and_the_first_is_no_other_nodes(own: str) -> None:
    models = [fedsim.load(own, strategy="tried_parts:Notes", engine={"chunk": chunk}).run(quiet=True).model for chunk in (8, 1)]
    first, second = (torch.cat([p.flatten() for p in model.parameters()]) for model in models)
    assert torch.equal(first, second)


def test_a_pull_for_each_job_simply_works() -> None:
    """One step of rate lr from x, held to 0 by p_i: x - lr (grad + p_i x); in both forms of `descend`."""

    class Pulled(FedAvg):
        def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
            start = received["model"] + 1
            pull = local.nodes.double() if self.train.momentum == 0 else local.nodes.double()[:, None]
            return {"update": local.descend(start, anchor=torch.zeros_like(start), pull=pull) - start}, memory

    task = quadratics([0.0, 2.0, 5.0])
    plain = run(task, Pulled(train=steps(1)), 1).state["model"]
    clipped = run(task, Pulled(train=steps(1, clip=100.0)), 1).state["model"]
    expected = -0.1 * sum((1 - b) + p for p, b in enumerate([0.0, 2.0, 5.0])) / 3
    assert float(plain) == pytest.approx(expected, abs=1e-14) and float(clipped) == pytest.approx(expected, abs=1e-14)
    for pull in (torch.full((3,), 0.3), 0.3):
        assert float(run(task, FedProx(train=steps(3), pull=pull), 2).state["model"]) == pytest.approx(  # type: ignore[arg-type]
            float(run(task, FedProx(train=steps(3), pull=0.3), 2).state["model"]), abs=1e-7
        )


@pytest.mark.parametrize("strategy", ["feddyn", "fedfix", "sketched", "mifa", "one_byte"])
def test_an_own_schedule_does_for_methods_that_need_rounds(own: str, strategy: str) -> None:
    own_settings = {"fedfix": ["strategy.weights=naive"], "one_byte": ["train=null"]}
    done = call("run", own, "schedule=tried_parts:Waves", f"strategy={strategy}", *own_settings.get(strategy, []))
    assert done.exit_code == 0, done.output
