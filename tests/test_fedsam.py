"""FedSAM, and MoFedSAM, which is FedCM with its gradients."""

import pytest
import torch
from tools import classification, models, quadratics, steps
from tools import quick as run

from fedsim.schedule import Rounds
from fedsim.settings.values import Count
from strategies.fedavg import FedAvg
from strategies.fedcm import FedCm
from strategies.fedsam import FedSam
from strategies.mofedsam import MoFedSam

ALL = Rounds(cohort=Count())


def test_without_ascent_they_are_fedavg_and_fedcm_in_bits():
    task, train = classification([7, 11, 9, 13]), steps(5, 0.1, batch=4)
    for sharp, plain in (
        (FedSam(train=train, schedule=ALL, ascent=0.0), FedAvg(train=train, schedule=ALL, weights="uniform")),
        (MoFedSam(train=train, schedule=ALL, ascent=0.0), FedCm(train=train, schedule=ALL)),
    ):
        assert torch.equal(models(run(task, sharp, 3)), models(run(task, plain, 3)))


def test_all_fresh_mofedsam_is_fedsam_in_bits():
    task, train = classification([7, 11, 9, 13]), steps(5, 0.1, batch=4)
    ours, theirs = (
        models(run(task, one, 3)) for one in (MoFedSam(train=train, schedule=ALL, fresh=1.0), FedSam(train=train, schedule=ALL))
    )
    assert torch.equal(ours, theirs)


def test_steps_by_hand():
    # F = 2/2 |w - (3, 4)|^2 from 0: g2 = (-6.6, -8.8) at (-0.3, -0.4); lr 1/4
    fed = run(quadratics([[3.0, 4]], 2.0), FedSam(train=steps(lr=0.25), schedule=ALL, ascent=0.5), 1)
    assert fed.state["model"][0].tolist() == pytest.approx([1.65, 2.2])
    # half of it, m = -(0.825, 1.1) x 4 = (-3.3, -4.4); then g1 = 2 (0.825 - 3, 1.1 - 4) = (-4.35, -5.8), g2 = g1 - (0.6, 0.8)
    fed = run(quadratics([[3.0, 4]], 2.0), MoFedSam(train=steps(lr=0.25), schedule=ALL, ascent=0.5, fresh=0.5), 2)
    assert models(fed)[1, 0].tolist() == pytest.approx([0.825, 1.1])
    assert fed.state["model"][0].tolist() == pytest.approx([0.825 + (4.95 + 3.3) / 8, 1.1 + (6.6 + 4.4) / 8])


def test_plain_ascent_rests_where_fedavg_on_steeper_bowls_rests():
    """g2 = (a + ascent a^2)(w - b), so K steps go the part 1 - (1 - lr (a + ascent a^2))^K of the way."""
    a, b = torch.tensor([1.0, 2, 4]).double(), torch.tensor([-1.0, 0, 3]).double()
    part = 1 - (1 - 0.05 * (a + 0.2 * a**2)) ** 5
    fed = run(quadratics(b, a), FedSam(train=steps(5, 0.05), schedule=ALL, ascent=0.2, normalised=False), 60)
    assert fed.state["model"].item() == pytest.approx(((part * b).sum() / part.sum()).item(), abs=1e-9)


def test_normalised_ascent_does_not_see_the_scale_of_the_loss():
    # in one dimension g2 = a (w + ascent x sign - b): from 0 to b = 3 a step of lr a (3 + ascent)
    for a in (0.1, 1.0, 2.0):
        fed = run(quadratics([3.0], a), FedSam(train=steps(lr=0.25), schedule=ALL, ascent=0.5), 1)
        assert fed.state["model"].item() == pytest.approx(0.25 * a * 3.5)
