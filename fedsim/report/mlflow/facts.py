"""What MLflow is told of a run beside its numbers: when it was, whose it is, tags."""

from contextlib import suppress
from datetime import datetime
from getpass import getuser

from fedsim import __version__
from fedsim.run.folders import RunFolder

NOTHING = (None, "", "none", "null", "~")


def written(text: str | None) -> str | None:
    """A setting's text; None where it says nothing."""
    return None if text in NOTHING else text


def began(run: RunFolder) -> int:
    """Milliseconds since 1970."""
    return int(datetime.fromisoformat(str(run.info["created"])).timestamp() * 1000)


def ended(run: RunFolder) -> int:
    """When it had run for as long as it did, whenever that is uploaded."""
    return began(run) + int(1000 * float(run.info.get("wall_seconds") or 0.0))


def tags_of(run: RunFolder) -> dict[str, str]:
    """Those of the scenario, MLflow's own, and what people look runs up by."""
    settings = run.parameters
    own = {key.removeprefix("track.tags."): value for key, value in settings.items() if key.startswith("track.tags.")}
    known = {name: run.info.get(name) for name in ("hash", "variant", "seed", "data")} | {"version": run.info.get("version", __version__)}
    known |= {"clock": "wall" if run.info.get("deployed") else "virtual"}
    return own | whose(run) | {f"fedsim.{key}": str(value) for key, value in known.items() if value not in (None, "")}


def whose(run: RunFolder) -> dict[str, str]:
    """Who made it, and from what: MLflow's own columns."""
    with suppress(OSError, KeyError):  # a user without a name
        return {"mlflow.source.name": str(run.info.get("name", "fedsim")), "mlflow.source.type": "LOCAL", "mlflow.user": getuser()}
    return {}
