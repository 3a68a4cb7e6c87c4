"""Augmentation: what each kind does by hand, keys alone decide, and training sees a sample anew each time."""

from dataclasses import replace

import pytest
import torch
from test_task import task_of
from tools import classification, models, steps
from tools import quick as run
from torch import nn

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.data.augment import Augment, Crop, Cutout, Flip, Noise, augmented, check_all
from fedsim.schedule import Rounds
from fedsim.settings.values import Count
from strategies.fedavg import FedAvg

KINDS: list[Augment] = [Flip(), Crop(2), Cutout(3), Noise()]
IMAGES, KEYS = torch.arange(1.0, 1 + 40 * 2 * 5 * 6).view(40, 2, 5, 6), fold(torch.arange(40), "test")


def test_images_are_mirrored_or_left() -> None:
    made = Flip().change(IMAGES, KEYS)
    mirrored = (made == IMAGES.flip(-1)).flatten(1).all(1)
    assert (mirrored | (made == IMAGES).flatten(1).all(1)).all() and 8 <= int(mirrored.sum()) <= 32
    assert torch.equal(Flip(chance=1).change(IMAGES, KEYS), IMAGES.flip(-1))


def test_a_crop_is_a_shift_with_zeros() -> None:
    """Each is one of the 25 shifts by at most two pixels, and not all the same one."""
    wide = nn.functional.pad(IMAGES, (2, 2, 2, 2))
    shifts = torch.stack([wide[..., a : a + 5, b : b + 6] for a in range(5) for b in range(5)])
    which = (Crop(2).change(IMAGES, KEYS) == shifts).flatten(2).all(2)
    assert (which.sum(0) == 1).all() and len(which.int().argmax(0).unique()) > 10


def test_cutout_is_one_square() -> None:
    gone = Cutout(3).change(IMAGES, KEYS) == 0
    assert torch.equal(gone[:, 0], gone[:, 1])  # in all channels
    rows, columns = gone[:, 0].any(2).sum(1), gone[:, 0].any(1).sum(1)
    assert torch.equal(gone[:, 0].flatten(1).sum(1), rows * columns) and {2, 3} == {*rows.tolist(), *columns.tolist()}


def test_noise_has_its_deviation() -> None:
    noise = Noise(0.1).change(IMAGES.double(), KEYS) - IMAGES
    assert noise.std().item() == pytest.approx(0.1, rel=0.05) and noise.mean().item() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("kind", KINDS, ids=lambda one: one.name)
def test_keys_alone_decide(kind: Augment) -> None:
    """Whatever stands beside a sample; and another key gives another one."""
    whole = augmented((kind, kind), IMAGES.view(4, 10, 2, 5, 6), KEYS.view(4, 10))
    assert torch.equal(augmented((kind, kind), IMAGES[7:9][None], KEYS[7:9][None])[0], whole.flatten(0, 1)[7:9])
    assert not torch.equal(kind.change(IMAGES, fold(KEYS, "again")), kind.change(IMAGES, KEYS))


def test_a_sample_is_seen_anew_in_each_epoch_and_rows_stack() -> None:
    """Nodes of one sample, trained on it in three steps: how many jobs are worked on together changes no bit."""
    task = replace(classification([1, 1, 1, 1], model=nn.Linear(6, 3)), augment=(Noise(1.0),))
    seen: list[torch.Tensor] = []

    class Watching(Noise):
        def change(self, inputs: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
            seen.append(keys)
            return super().change(inputs, keys)

    strategy = FedAvg(train=steps(3, 0.1), schedule=Rounds(cohort=Count()))
    whole = models(run(replace(task, augment=(Watching(1.0),)), strategy, 2))
    assert len(torch.cat(seen).unique()) == 4 * 3 * 2  # nodes, steps and rounds
    assert torch.equal(whole, models(run(task, strategy, 2)))
    assert not torch.equal(whole, models(run(replace(task, augment=()), strategy, 2)))


def test_what_can_not_be_changed_is_refused() -> None:
    with pytest.raises(SettingError, match="flip changes images, and samples have shape") as caught:
        check_all((Noise(), Flip()), (2,), True)
    assert caught.value.key == "task.augment.1.name"
    with pytest.raises(SettingError, match="4 pixels on each side of images of 4 x 9"):
        check_all((Crop(),), (1, 4, 9), True)
    with pytest.raises(SettingError, match="the samples are tokens"):
        check_all((Noise(),), (7,), False)
    assert task_of().augment == ()
