"""The event queue against a sorted list, and the length of a tick."""

from fractions import Fraction
from heapq import heappop, heappush

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedsim.base.clock import EventQueue, ticks_per_second
from fedsim.base.keys import below, fold


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
    st.lists(st.tuples(st.lists(st.integers(0, 40), max_size=12), st.integers(0, 8), st.integers(0, 20)), max_size=25),
    st.integers(1, 5),
    st.sampled_from([1, 2**50]),  # times and nodes fit one number together, or don't
)
def test_any_mix_of_pushes_and_pops_equals_a_heap(moves: list[tuple[list[int], int, int]], bucket: int, unit: int) -> None:
    queue, heap, now, serial = EventQueue(bucket), list[tuple[int, int, int]](), 0, 0
    for delays, count, window in moves:
        events = [(now + delay * unit, (serial + k) * 7 % 11, serial + k) for k, delay in enumerate(delays)]
        serial += len(events)
        for event in events:
            heappush(heap, event)
        if events:
            queue.push(*(np.array(column) for column in zip(*events, strict=True)))
        until = now + window * unit
        got = queue.peek(count, until)
        expected = []
        while heap and heap[0][0] <= until and len(expected) < count:
            expected.append(heappop(heap))
        assert list(zip(*(column.tolist() for column in got), strict=True)) == expected
        queue.drop(len(expected))
        now = expected[-1][0] if expected else now
        assert len(queue) == len(heap)
    assert list(zip(*(column.tolist() for column in queue.all()), strict=True)) == sorted(heap)


def test_order_is_that_of_a_heap_through_all_pools() -> None:
    """300 events that return again and again in a queue of three pools; times and nodes repeat, serial numbers don't."""
    queue, heap, delays = EventQueue(2), list[tuple[int, int, int]](), below(fold(0, "delay"), 3000, 50).numpy()
    queue.push(delays[:300], np.arange(300) % 7, np.arange(300))
    heap = sorted(zip(delays[:300].tolist(), (np.arange(300) % 7).tolist(), range(300), strict=True))
    depth = 0
    for serial in range(300, 3000, 3):
        first = queue.peek(3)
        queue.drop(3)
        assert list(zip(*(column.tolist() for column in first), strict=True)) == [heappop(heap) for _ in range(3)]
        again = (first.time + delays[serial : serial + 3], first.node, np.arange(serial, serial + 3))
        queue.push(*again)
        for event in zip(*(column.tolist() for column in again), strict=True):
            heappush(heap, event)
        depth = max(depth, len(queue.pools))
    assert depth == 3


def test_a_tick_divides_all_exact_times() -> None:
    assert ticks_per_second([1]) == 10**9
    assert ticks_per_second([19, 1, 3]) == 57 * 10**9
    huge = 10**9 * 999_983
    assert ticks_per_second([999_983], Fraction(1000)) == huge
    assert ticks_per_second([999_983], Fraction(10**6)) == 10**9  # int64 would not reach the end in finer ticks
