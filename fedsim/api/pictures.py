"""Pictures that notebooks show."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim.report.figures import plots
from fedsim.report.figures.chart import draw_chart
from fedsim.run.folders import RunFolder


@dataclass(frozen=True)
class Picture:
    """A PNG file, which a notebook shows; `caption` says what its lines and bands are."""

    path: Path
    caption: str = ""

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()


def chart(runs: Sequence[RunFolder], x: str, y: str, variants: str) -> Picture:
    """Raises FedsimError for what is unknown."""
    return Picture(*draw_chart(runs, x, y, variants))


def drawn(runs: Sequence[RunFolder]) -> list[Picture]:
    """All that the runs' data allow."""
    return [Picture(file) for file in plots.draw(runs)]
