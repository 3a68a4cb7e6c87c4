"""One batch of a node, drawn by a key of its own."""

import numpy as np
import pytest

from fedsim.method.batching import MANY, Work, first_batch, places


def work(*samples: int) -> Work:
    ones = np.ones(len(samples), dtype=np.int64)
    return Work(np.arange(len(samples)) * 7 + 1, np.array(samples), ones, ones)


def test_of_few_samples_it_is_the_first_batch_of_a_pass() -> None:
    some = work(40, 3, MANY - 1)
    place, valid = first_batch(some, 5, shuffle=True)
    job, expected, counts = places(some, 5, 0, 1, shuffle=True)
    assert job.tolist() == [0, 1, 2]
    assert (place == expected).all() and (valid == counts).all() and valid.sum(1).tolist() == [5, 3, 5]


def test_of_very_many_samples_it_has_none_twice_and_each_equally_often() -> None:
    some = work(*[MANY] * 400)
    place, valid = first_batch(some, MANY // 32, shuffle=True)
    assert valid.all() and place.min() >= 0 and place.max() < MANY
    assert all(len(set(row)) == MANY // 32 for row in place.tolist())
    # 400 batches of 512 in 8 parts of the samples: 25,600 each, standard deviation about 150
    assert np.bincount(place.flatten() // (MANY // 8)) == pytest.approx(25_600, abs=700)


def test_company_and_room_change_nothing() -> None:
    together, _ = first_batch(work(50, 30_000, 20, 90_000), 9, shuffle=True)
    for row, samples in ((1, 30_000), (3, 90_000)):
        alone = Work(np.array([row * 7 + 1]), np.array([samples]), *(np.ones(1, dtype=np.int64),) * 2)
        assert (first_batch(alone, 9, shuffle=True)[0][0] == together[row]).all()
        assert (first_batch(alone, 4, shuffle=True)[0][0] == together[row, :4]).all()


def test_without_shuffle_it_is_the_first_samples() -> None:
    assert first_batch(work(MANY), 3, shuffle=False)[0].tolist() == [[0, 1, 2]]
