"""mlflow.json of a run: what of it is uploaded, so that an upload can be repeated."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from fedsim.base.errors import FedsimError
from fedsim.report.mlflow.store import UploadError
from fedsim.run.intact import read_json


@dataclass
class Uploaded:
    """Where a run is uploaded to, without password, and how much of it."""

    uri: str
    experiment: str
    run_id: str = ""
    metrics: int = 0
    parameters: bool = False
    status: str = ""
    artifacts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, uri: str, experiment: str) -> "Uploaded":
        """What is kept for this store and experiment; an empty one where that is nothing, of others, or damaged."""
        try:
            kept = cls(**read_json(folder / "mlflow.json"))
        except (FedsimError, TypeError):
            return cls(uri, experiment)
        return kept if (kept.uri, kept.experiment) == (uri, experiment) else cls(uri, experiment)

    def save(self, folder: Path) -> None:
        new = folder / "mlflow.json.new"
        try:
            new.write_text(json.dumps(vars(self), indent=1) + "\n")
            new.replace(folder / "mlflow.json")
        except OSError as error:
            raise UploadError(f"{folder / 'mlflow.json'} can't be written: {error.strerror}") from None
