"""What runs left, as pandas frames."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedsim.federation.ledger import KINDS
from fedsim.report.comparison.records import records, whole
from fedsim.report.comparison.rows import compared
from fedsim.run.folders import RunFolder

if TYPE_CHECKING:
    import pandas as pd

TICKS = ("time", "down", "work", "up")


def metrics_of(run: RunFolder) -> "pd.DataFrame":
    """A row an evaluation."""
    import pandas as pd

    return pd.DataFrame(run.metrics)


def events_of(run: RunFolder) -> "pd.DataFrame":
    """A row an event; ticks as seconds."""
    import pandas as pd

    columns = {name: values.copy() for name, values in run.columns.items()}
    kinds = pd.Categorical.from_codes(columns["kind"], categories=list(KINDS))
    seconds = {name: columns[name] / run.ticks_per_second for name in TICKS}
    return pd.DataFrame({**columns, "kind": kinds, **seconds})


def comparison(runs: Sequence[RunFolder], baseline: str | None, where: Sequence[str], best: bool) -> "pd.DataFrame":
    """A row a variant, see `records`."""
    import pandas as pd

    found = compared(runs, baseline, where, best)
    frame = pd.DataFrame(records(found)).set_index("variant")
    frame.attrs = {name: said for name, said in whole(found).items() if name != "variants"} | {"damaged": list(found.broken)}
    return frame
