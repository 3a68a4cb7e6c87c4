"""Gradient codes and sequential schemes: gradient_coding.md's oracles."""

from itertools import combinations

import numpy as np
import pytest

from fedsim.coding.codes import cyclic, fractional
from fedsim.coding.patterns import arbitrary, bursty
from fedsim.coding.replay import fastest, grid, load, replay
from fedsim.coding.scheme import Fractional, Gc, MSgc, Scheme, SrSgc, Uncoded


def missing(workers, gone):
    got = np.ones(workers, dtype=bool)
    got[list(gone)] = False
    return got


@pytest.mark.parametrize("code", [cyclic(6, 2), fractional(6, 2), cyclic(5, 4), fractional(6, 5)])
def test_any_s_stragglers_leave_the_exact_sum(code):
    workers = len(code.matrix)
    stragglers = int((code.matrix[0] != 0).sum()) - 1
    for count in range(stragglers + 1):
        for gone in combinations(range(workers), count):
            a = code.decode(missing(workers, gone))
            assert np.abs(a @ code.matrix - 1).max() < 1e-10
            assert not a[list(gone)].any()


def test_one_straggler_more_can_not_be_decoded():
    assert all(cyclic(6, 2).decode(missing(6, gone)) is None for gone in combinations(range(6), 3))
    assert fractional(6, 2).decode(missing(6, (0, 1, 2))) is None
    assert fractional(6, 2).decode(missing(6, (0, 1, 3, 4))) is not None  # one of each group is left


def test_no_stragglers_means_no_code():
    assert (cyclic(5, 0).matrix == np.eye(5)).all()
    assert (cyclic(5, 0).decode(missing(5, ())) == 1).all()


def test_rows_of_the_cyclic_code_stand_on_s_plus_1_chunks():
    matrix = cyclic(7, 2).matrix
    assert [np.flatnonzero(row).tolist() for row in matrix[[0, 5, 6]]] == [[0, 1, 2], [0, 5, 6], [0, 1, 6]]


@pytest.mark.parametrize("stragglers", [15, 27])
def test_256_workers_decode_to_eight_digits(stragglers):
    code, order = cyclic(256, stragglers), np.random.default_rng(0)
    for _ in range(5):
        a = code.decode(missing(256, order.permutation(256)[:stragglers]))
        assert np.abs(a @ code.matrix - 1).max() < 1e-7


def test_decoding_agrees_with_least_squares_on_what_was_got():
    code, got = cyclic(8, 3), missing(8, (1, 4, 6))
    direct = np.linalg.lstsq(code.matrix[got].T, np.ones(8), rcond=None)[0]
    np.testing.assert_allclose(code.decode(got)[got], direct, atol=1e-9)


def test_loads_are_those_of_the_paper():
    assert load(MSgc(1, 2, 27), 256) == pytest.approx(56 / 7424, abs=1e-12)
    assert SrSgc(2, 3, 23).repaired == 12
    assert load(SrSgc(2, 3, 23), 256) == 13 / 256
    assert (load(Gc(15), 256), load(Uncoded(), 256)) == (1 / 16, 1 / 256)
    assert load(MSgc(1, 2, 4), 4) == pytest.approx(2 / 4)  # lambda = n: (W - 1 + B) / (n (W - 1))


@pytest.mark.parametrize(
    "scheme", [MSgc(1, 2, 2), MSgc(2, 3, 2), MSgc(2, 4, 3), MSgc(1, 2, 4), Gc(1), Fractional(1), SrSgc(1, 2, 3), Uncoded()]
)
def test_chunks_make_one_whole_and_sums_have_the_nominal_load(scheme: Scheme):
    assert scheme.sizes(4).sum() == pytest.approx(1, abs=1e-12)
    _, sums = scheme.assign(np.zeros((scheme.delay + 1, 4, scheme.sums(4).shape[1]), dtype=bool))
    loads = scheme.loads(4)
    np.testing.assert_allclose(np.where(sums < 0, 0, loads[np.arange(4)[:, None], sums]).sum(1), load(scheme, 4), atol=1e-12)


def test_bursts_are_counted_in_their_window():
    slow = np.zeros((3, 4), dtype=bool)
    slow[0, 0] = slow[1, 0] = slow[1, 1] = True
    assert bursty(slow, 2, 2) and not bursty(slow, 2, 1)
    slow[2, 1] = True
    assert bursty(slow, 2, 2)
    slow[2, 0] = True  # three rounds from first to last
    assert not bursty(slow, 2, 2) and not arbitrary(slow, 2, 2)
    slow[1, 0] = False  # twice, but not within two rounds
    assert not bursty(slow, 2, 2) and arbitrary(slow, 2, 2)


def conforming(scheme, workers, rounds, rng):
    """A random pattern of slow workers to which the scheme's own rule says yes in each round; bool [rounds, n]."""
    slow = np.zeros((rounds, workers), dtype=bool)
    for r in range(rounds):
        for node in rng.permutation(workers):
            slow[r, node] = rng.random() < 0.6
            if not scheme.conforms(slow[max(r + 1 - scheme.horizon, 0) : r + 1]):
                slow[r, node] = False
    return slow


def ready(scheme, workers, slow):
    """The rounds after its own in which each job could be decoded, with the sums that count then."""
    late, sums, delay = {}, scheme.sums(workers), scheme.delay
    tables = {}
    for r in range(len(slow)):
        tables[r] = np.zeros(sums.shape[:2], dtype=bool)
        past = [tables.get(r - a, np.ones(sums.shape[:2], dtype=bool)) for a in range(delay + 1)]
        ages, which = scheme.assign(np.stack(past))
        for node in np.flatnonzero(~slow[r]):
            for age, one in zip(ages[node], which[node], strict=True):
                if one >= 0 and age <= r:
                    tables[r - age][node, one] = True
        for job in range(max(r - delay, 0), r + 1):
            if job not in late and (a := scheme.decode(tables[job])) is not None:
                late[job] = r - job
                assert np.abs(np.einsum("iq,iqk->k", a * tables[job], sums) - 1).max() < 1e-6
    return late


M_CASES = [(4, 1, 2, 2), (4, 2, 3, 2), (5, 1, 3, 3), (4, 2, 4, 3), (4, 1, 2, 4), (5, 2, 3, 5)]


@pytest.mark.parametrize("pattern", ["bursty", "arbitrary"])
@pytest.mark.parametrize(("n", "b", "w", "most"), M_CASES)
def test_m_sgc_decodes_every_job_in_time_whatever_conforms(n, b, w, most, pattern):
    scheme, rng = MSgc(b, w, most, pattern), np.random.default_rng(n + 10 * b + 100 * w)
    for _ in range(8):
        slow = conforming(scheme, n, 14, rng)
        assert slow.any()
        late = ready(scheme, n, slow)
        assert set(range(14 - scheme.delay)) <= set(late)
        assert max(late.values()) <= scheme.delay


@pytest.mark.parametrize(("n", "b", "w", "most"), [(6, 1, 2, 4), (6, 2, 3, 4), (6, 1, 3, 3), (8, 2, 5, 6)])
def test_sr_sgc_decodes_every_job_in_time_whatever_conforms(n, b, w, most):
    scheme, rng = SrSgc(b, w, most), np.random.default_rng(n + 10 * b + 100 * w)
    for _ in range(8):
        slow = conforming(scheme, n, 14, rng)
        late = ready(scheme, n, slow)
        assert set(range(14 - b)) <= set(late)
        assert slow.any() and max(late.values()) <= b


def test_without_stragglers_selective_repetition_is_a_code_for_fewer():
    times = np.ones((5, 6))
    assert replay(SrSgc(1, 2, 4), times, 6.0, 1.0) == replay(Gc(2), times, 6.0, 1.0) == (5 * (1 + 3), 0)
    assert ready(SrSgc(1, 2, 4), 6, times > 1) == dict.fromkeys(range(5), 0)


def test_a_round_ends_at_the_limit_with_the_last_or_waits_for_all():
    times = np.array([[1.0, 1.5, 9.0], [1.0, 5.0, 9.0], [1.0, 1.2, 1.4]])
    assert replay(Gc(1), times, 0.0, 1.0) == (2 + 9 + 1.4, 1)  # at most one is slow: in the second round two are
    assert replay(Gc(1, strict=True), times, 0.0, 1.0) == (9 + 9 + 1.4, 2)
    assert replay(Uncoded(), times, 0.0, 1.0) == (9 + 9 + 1.4, 2)


def test_endless_patience_has_no_stragglers_and_none_has_only_them():
    times = np.array([[1.0, 2.0, 3.0], [2.0, 1.0, 3.0]])
    assert replay(Gc(1), times, 0.0, np.inf) == (6, 0)
    assert replay(Gc(1), times, 0.0, 0.0) == (6, 2)


def test_waiting_for_all_forgives_the_past():
    slow_once = np.array([[9.0, 1.0, 1.0], [9.0, 1.0, 1.0], [9.0, 1.0, 1.0]])
    # B = 1, W = 2: nobody is slow twice in two rounds; after the wait of round 1 nobody was slow in it
    assert replay(MSgc(1, 2, 1), slow_once, 0.0, 1.0) == (2 + 9 + 2, 1)


def test_the_probe_finds_the_scheme_that_its_bursts_ask_for():
    times = np.ones((14, 6))
    times[::2, 0] = 20.0  # one worker, every other round: within any two rounds once
    found = fastest(grid(MSgc, 6), times, 10, 1.0, 1.0)
    assert (found.burst, found.window) == (1, 2)
    rounds = 10 + found.delay
    assert replay(found, times[:rounds], 1.0, 1.0).waits == 0
    with pytest.raises(ValueError, match="14 rounds; the probe has 12"):
        fastest(grid(MSgc, 6), times[:12], 10, 1.0, 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MSgc(2, 2, 3), "`burst` is less than `window`"),
        (lambda: SrSgc(2, 4, 3), "multiple of `burst`"),
        (lambda: Fractional(2).sums(8), "groups of 3 don't divide 8 workers; with `stragglers: 1` they would"),
        (lambda: Gc(4).sums(4), "4 stragglers of 4 workers leave nobody"),
        (lambda: MSgc(1, 2, 5).sums(4), "5 stragglers of 4 workers"),
        (lambda: SrSgc(1, 2, 5).sums(4), "5 stragglers of 4 workers"),
    ],
)
def test_what_no_scheme_can_do_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
