"""Where a curve crosses its target: numbers by hand."""

from typing import Any

import pytest

from fedsim.run.crossing import crossing


def curve(*accuracies: float | None, seconds: float = 10.0) -> list[dict[str, Any]]:
    """An evaluation each 10 s, 2 rounds, 100 bytes, 4 updates and 8 J; None where accuracy wasn't measured."""
    spent = {"round": 2, "time/seconds": seconds, "traffic/bytes": 100, "work/updates": 4, "energy/joules": 8.0}
    return [
        {name: at * each for name, each in spent.items()} | ({} if value is None else {"test/accuracy": value})
        for at, value in enumerate(accuracies)
    ]


def test_everything_is_told_where_the_drawn_line_meets_the_target() -> None:
    """From 0.5 to 1.0 between 20 and 30 s: 0.75 is met half of the way, at 25 s, though three evaluations end at 50 s only."""
    found = crossing(curve(0.0, 0.25, 0.5, 1.0, 1.0, 1.0), 0.75, 3)
    assert found == {"round": 5.0, "seconds": 25.0, "bytes": 250.0, "updates": 10.0, "joules": 20.0, "apart": 10 / 25}


@pytest.mark.parametrize(
    ("accuracies", "smooth", "seconds"),
    [
        ((0.0, 1.0, 0.0, 0.0, 0.5, 1.0, 1.0), 3, 40.0),  # one peak is no crossing; the mean of 0.5, 1, 1 confirms one at 40 s
        ((0.0, 1.0, 0.0, 0.0, 0.5, 1.0, 1.0), 1, 5.0),  # unless one evaluation is enough
        ((0.0, 1.0, 0.25, 0.75, 1.0), 3, 5.0),  # 1, 0.25 and 0.75 have a mean of 2/3: the peak belongs to what confirms it
        ((0.0, 0.25, 0.0, 1.0, 1.0), 3, 25.0),  # so far below before that the mean confirms it late; the crossing stays
        ((0.0, 1.0, 0.75, 0.0, 1.0, 0.5), 2, 5.0),
        ((1.0, 1.0, 1.0), 3, 0.0),  # there from the start
        ((0.0, None, 0.5, None, 0.5, 0.5), 3, 20.0),  # measured now and then
    ],
)
def test_smoothing_confirms_a_crossing_and_does_not_shift_it(accuracies: tuple[float | None, ...], smooth: int, seconds: float) -> None:
    found = crossing(curve(*accuracies), 0.5, smooth)
    assert found is not None and found["seconds"] == seconds


@pytest.mark.parametrize("accuracies", [(), (0.0, 1.0, 1.0), (0.0, 1.0, 0.0, 1.0, 0.0, 0.0)])
def test_what_nothing_confirms_is_no_crossing(accuracies: tuple[float, ...]) -> None:
    assert crossing(curve(*accuracies), 0.7, 3) is None
    assert crossing(curve(*accuracies), None, 3) is None


def test_where_nothing_takes_time_rounds_tell_how_far_evaluations_lie_apart() -> None:
    """0.5 is met at round 5, between rounds 4 and 6."""
    found = crossing(curve(0.0, 0.0, 0.25, 0.75, 1.0, seconds=0.0), 0.5, 2)
    assert found is not None and (found["round"], found["seconds"], found["apart"]) == (5.0, 0.0, 0.4)


def test_a_mean_that_is_rounded_up_to_the_target_has_a_crossing_too() -> None:
    found = crossing(curve(0.0, 0.3, 0.3, 0.3), (0.3 + 0.3 + 0.3) / 3, 3)
    assert found is not None and found["seconds"] == 10.0
