"""Live progress: one line a running variant on a terminal, one plain line an evaluation elsewhere."""

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

from rich.console import Console

from fedsim.base.text import clock, count, duration, percent, size, three_digits
from fedsim.report.screen.standing import Painted

if TYPE_CHECKING:
    from fedsim.run.runner import Run

REFRESH = 0.1  # seconds


class Progress(Painted):
    """Use as a context; call it with the run at every chance."""

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        super().__init__(console, quiet)
        self.last, self.shown = 0.0, ("", 0)
        self.said = set[str]()  # lines that need no saying again

    def say(self, *lines: str) -> None:
        """Lines that stay, also where it is quiet."""
        for line in lines:
            self.console.print(line, soft_wrap=True, markup=False)

    def introduce(self, title: str, found: Sequence[str], warnings: Sequence[str]) -> None:
        """What was found in a run's data and what is doubtful; what was said of a run before is not said again."""
        lines = [line for line in (*(found if found[0] not in self.said else []), *warnings) if line not in self.said]
        if lines:
            self.say(title, *lines)
        self.said |= {*found, *warnings}

    def __call__(self, run: "Run") -> None:
        """Shows where the run is, if it is time."""
        if self.live and monotonic() - self.last > REFRESH:
            self.paint(describe(run))
            self.last = monotonic()
        elif not self.live and not self.quiet and run.writer and not run.doing and (run.loaded.label, len(run.records)) != self.shown:
            self.shown = (run.loaded.label, len(run.records))
            self.say(describe(run))


def describe(run: "Run") -> str:
    """`buffered seed 0  round 491  16:21/20:00  88.1 %  189 MB  9.8k steps/s  3 s left`"""
    wall, last = monotonic() - run.began, run.records[-1] if run.records else {}
    end = run.stop.seconds
    words = [run.loaded.label, f"round {count(run.fed.round)}", clock(run.seconds) + (f"/{clock(float(end))}" if end else "")]
    if "test/accuracy" in last:
        words.append(percent(last["test/accuracy"]))
    elif "test/loss" in last:
        words.append(f"loss {last['test/loss']:.4g}")
    rate = (run.fed.worker.steps_done or run.fed.ledger.steps) / max(wall, 1e-9)  # of a server, what its workers did
    words += [size(run.fed.ledger.bytes), f"{three_digits(rate / 1000)}k steps/s" if rate >= 1000 else f"{rate:.0f} steps/s"]
    words += [run.doing] if run.doing else []
    if 0 < run.progress < 1 and wall > 1:
        words.append(f"{duration(round(wall / run.progress * (1 - run.progress)))} left")
    return "  ".join(words)
