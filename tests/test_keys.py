import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fedsim.base.keys import below, bits, coins, distinct, fold, fold_array, normal, permutation, uniform

whole = st.integers(-(2**63), 2**63 - 1)


def splitmix(state: int) -> int:
    """The published finaliser on Python integers."""
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def test_bits_are_splitmix64_from_the_key_on():
    drawn = [int(b) % 2**64 for b in bits(torch.tensor(1234567), 3)]
    # The reference sequence for seed 1234567 of the published C code.
    assert drawn == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert drawn[0] == splitmix(1234567)


@given(st.lists(whole, min_size=1, max_size=5), whole)
def test_a_batch_of_keys_gives_what_each_key_gives_alone(words, seed):
    together = fold(seed, "batch", torch.tensor(words))
    for i, word in enumerate(words):
        alone = fold(seed, "batch", word)
        assert together[i] == alone
        for draw in (bits, uniform, normal, permutation):
            assert torch.equal(draw(together, 5)[i], draw(alone, 5))
        assert torch.equal(below(together, 3, 7)[i], below(alone, 3, 7))


@given(whole, st.integers(1, 9), st.integers(0, 5))
def test_the_first_numbers_do_not_depend_on_how_many_are_drawn(seed, count, more):
    key = fold(seed)
    for draw in (bits, uniform, normal):
        assert torch.equal(draw(key, count + more)[:count], draw(key, count))


def test_order_and_kind_of_words_matter():
    keys = [fold(0), fold(1), fold(0, 1, 2), fold(0, 2, 1), fold(0, "1"), fold(0, 1), fold(0, "a", "b"), fold(0, "ab")]
    assert len({int(k) for k in keys}) == len(keys)
    assert fold(2**64 + 5, 3) == fold(5, 3)


def test_no_collisions_over_a_million_keys():
    keys = fold(0, torch.arange(1000)[:, None], torch.arange(1000))
    assert keys.unique().numel() == 1_000_000


@pytest.mark.parametrize("keys", [fold(7, torch.arange(200_000)), fold(torch.arange(200_000), "seed")])
def test_moments(keys):
    n = len(keys)
    u, z = uniform(keys, 1)[:, 0].double(), normal(keys, 2).double()
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 4 / math.sqrt(12 * n)
    assert abs(u.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / n)
    for column in (z[:, 0], z[:, 1]):
        assert abs(column.mean()) < 4 / math.sqrt(n)
        assert abs(column.var() - 1) < 4 * math.sqrt(2 / n)
        assert abs((column**4).mean() - 3) < 4 * math.sqrt(96 / n)
    assert abs((z[:, 0] * z[:, 1]).mean()) < 4 / math.sqrt(n)


def test_neighbouring_keys_and_bits_are_unrelated():
    first, second = (uniform(fold(0, torch.arange(100_000) + i), 1)[:, 0].double() - 0.5 for i in (0, 1))
    assert abs((first * second).mean()) < 4 / 12 / math.sqrt(100_000)
    ones = (bits(fold(0, torch.arange(20_000)), 1) >> torch.arange(64)) & 1
    assert (ones.double().mean(0) - 0.5).abs().max() < 5 * 0.5 / math.sqrt(20_000)


def test_below_reaches_every_number_and_no_more():
    high = torch.tensor([1, 2, 7])
    drawn = below(fold(3, torch.arange(3)), 2000, high)
    assert [sorted(set(row.tolist())) for row in drawn] == [[0], [0, 1], [0, 1, 2, 3, 4, 5, 6]]


def test_permutation_is_one_and_each_order_as_likely():
    orders = permutation(fold(1, torch.arange(12_000)), 3)
    assert torch.equal(orders.sort(-1).values, torch.arange(3).expand(12_000, 3))
    counts = torch.bincount(orders[:, 0] * 3 + orders[:, 1], minlength=9)
    assert counts[[0, 4, 8]].sum() == 0
    assert (counts[[1, 2, 3, 5, 6, 7]] - 2000).abs().max() < 5 * math.sqrt(12_000 * 1 / 6 * 5 / 6)


def test_inside_vmap_and_traces():
    def draw(key):
        key = fold(key, "step", 3)
        return uniform(key, 4) + normal(key, 4) + below(key, 4, 9) + permutation(key, 4)

    keys = fold(0, torch.arange(5))
    plain = torch.stack([draw(k) for k in keys])
    assert torch.equal(vmap(draw)(keys), plain)
    traced = make_fx(vmap(draw))(fold(1, torch.arange(5)))
    assert torch.equal(traced(keys), plain)


@given(st.lists(st.tuples(whole, whole), min_size=1, max_size=5), whole)
def test_arrays_fold_to_the_numbers_of_tensors(pairs: list[tuple[int, int]], word: int):
    keys, words = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    assert fold_array(keys, "order", word, words).tolist() == fold(torch.from_numpy(keys), "order", word, torch.from_numpy(words)).tolist()


@given(whole, st.lists(st.one_of(whole, st.text()), max_size=4))
def test_numbers_fold_as_tensors_do(key: int, words: list[int | str]):
    assert int(fold(key, *words)) == int(fold(torch.tensor(key), *words))
    assert fold_array(key, *words).tolist() == [int(fold(key, *words))]


def test_coins_are_uniform_numbers_below_their_chance() -> None:
    key = fold(3, torch.arange(1000))
    for chance in (0.0, 0.3, 1.0):
        assert coins(key.numpy(), chance).tolist() == (uniform(key, 1)[:, 0].double() < chance).tolist()


def test_distinct_numbers_are_any_set_alike() -> None:
    """Of 5 numbers 10 pairs, 3,000 times each on average; and rows with other ranges, up to all that there are."""
    key = fold_array(3, np.arange(30_000))
    rows = distinct(key, 2, np.full(30_000, 5))
    assert (rows[:, 0] != rows[:, 1]).all() and rows.min() == 0 and rows.max() == 4
    seen = np.bincount(5 * rows.min(1) + rows.max(1), minlength=25)
    assert (seen > 0).sum() == 10 and (abs(seen[seen > 0] - 3000) < 5 * 3000**0.5).all()
    mixed = distinct(key[:4], 3, np.array([3, 4, 100, 3]))
    assert sorted(mixed[0].tolist()) == sorted(mixed[3].tolist()) == [0, 1, 2]
    assert np.array_equal(distinct(key[2:3], 3, np.array([100])), mixed[2:3])  # whatever else is drawn
