"""FedSpeed's frame in scenarios: what is refused, and that its methods run with what every method must run with."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launch import refused, write
from tools import classification, models, run, steps

from fedsim.method.strategy import Strategy
from fedsim.schedule import Rounds
from fedsim.settings.values import Count
from strategies.fedcm import FedCm
from strategies.feddyn import FedDyn
from strategies.fedsam import FedSam
from strategies.fedspeed import FedSpeed
from strategies.mofedsam import MoFedSam
from strategies.scaffold import Scaffold

FRAME = [FedDyn(), Scaffold(), FedSpeed(), FedSpeed(blend=0.5, relax=0.1, duals="active"), FedCm(), FedSam(), MoFedSam()]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["strategy=feddyn", "schedule={name: buffered, size: 2}"], "`feddyn` works in `rounds`; under `buffered`"),
        (["strategy=fedspeed", "schedule={name: ticks, every: 1 s}"], "`fedspeed` works in `rounds`; under `ticks`"),
        (["strategy=scaffold", "schedule=gossip", "world=null"], "`scaffold` merges at a server"),
        (["strategy=mofedsam", "schedule=gossip", "world=null"], "`mofedsam` merges at a server"),
        (["strategy={name: fedspeed, ascent: -1}"], "strategy.ascent: `-1`: at least 0 is due"),
        (["strategy={name: fedspeed, blend: 2}"], "strategy.blend: `2`"),
        (["strategy={name: fedspeed, duals: some}"], "strategy.duals: `some`"),
        (["strategy={name: feddyn, pull: -0.1}"], "strategy.pull: `-0.1`: at least 0 is due"),
        (["strategy={name: fedcm, fresh: 0}"], "strategy.fresh: `0`"),
        (["strategy={name: scaffold, server_lr: 0}"], "strategy.server_lr: `0`"),
    ],
)
def test_what_has_no_meaning_is_refused(folder: Path, settings: list[str], said: str) -> None:
    assert said in refused("run", write(folder).name, *settings)


@pytest.mark.parametrize("strategy", FRAME, ids=lambda one: one.name)
def test_bits_do_not_depend_on_chunks_and_plans_agree(strategy: Strategy) -> None:
    task = classification([7, 11, 9, 13, 4])
    method = replace(strategy, train=steps(4, 0.1, batch=4), schedule=Rounds(Count(3)))
    whole = models(run(task, method, 3))
    assert torch.equal(models(run(task, method, 3, chunk=1)), whole)
    assert torch.equal(models(run(task, method, 3, chunk=2)), whole)
    assert torch.allclose(models(run(task, method, 3, plan="looped")), whole, atol=1e-6)
    assert (whole[-1] - whole[0]).norm() > 0.1
