"""The event queue against a sorted list, and the length of a tick."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedsim.clock import EventQueue, ticks_per_second


def test_events_come_in_the_order_of_time_then_node_then_serial() -> None:
    queue = EventQueue()
    queue.push(np.array([5, 3, 3]), np.array([0, 7, 2]), np.array([0, 1, 2]))
    queue.push(np.array([3, 1]), np.array([2, 9]), np.array([3, 4]))
    everything = queue.all()
    assert everything.time.tolist() == [1, 3, 3, 3, 5]
    assert everything.node.tolist() == [9, 2, 2, 7, 0]
    assert everything.serial.tolist() == [4, 2, 3, 1, 0]


def test_peek_leaves_and_drop_removes() -> None:
    queue = EventQueue()
    queue.push(np.array([4, 2, 9]), np.array([0, 1, 2]), np.array([0, 1, 2]))
    assert queue.peek(2).time.tolist() == [2, 4]
    assert queue.peek(3, until=4).time.tolist() == [2, 4]
    queue.drop(1)
    assert len(queue) == 2
    queue.push(np.array([3]), np.array([5]), np.array([3]))  # before what is in the front
    assert queue.all().time.tolist() == [3, 4, 9]


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 40), max_size=12), st.integers(0, 8), st.integers(0, 20)), max_size=25), st.integers(1, 5)
)
def test_any_mix_of_pushes_and_pops_equals_a_sorted_list(moves: list[tuple[list[int], int, int]], bucket: int) -> None:
    queue, reference, now, serial = EventQueue(bucket), list[tuple[int, int, int]](), 0, 0
    for delays, count, window in moves:
        events = [(now + delay, (serial + k) * 7 % 11, serial + k) for k, delay in enumerate(delays)]
        serial += len(events)
        reference = sorted(reference + events)
        if events:
            queue.push(*(np.array(column) for column in zip(*events, strict=True)))
        got = queue.peek(count, now + window)
        expected = [event for event in reference if event[0] <= now + window][:count]
        assert list(zip(*(column.tolist() for column in got), strict=True)) == expected
        queue.drop(len(expected))
        reference = reference[len(expected) :]
        now = expected[-1][0] if expected else now
        assert len(queue) == len(reference)


def test_a_tick_divides_all_exact_times() -> None:
    assert ticks_per_second([1]) == 10**9
    assert ticks_per_second([19, 1, 3]) == 57 * 10**9
    huge = 10**9 * 999_983
    assert ticks_per_second([999_983], Fraction(1000)) == huge
    assert ticks_per_second([999_983], Fraction(10**6)) == 10**9  # int64 would not reach the end in finer ticks
