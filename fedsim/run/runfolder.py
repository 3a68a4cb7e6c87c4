"""Writing a run's folder: the truth about a run, readable at any moment of it."""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import safetensors.torch
from torch import Tensor

from fedsim import __version__
from fedsim.base.crashes import last_words_to
from fedsim.base.errors import FedsimError
from fedsim.base.files import whole, write_json, writing
from fedsim.base.rows import Layout
from fedsim.run.links import keep_inside
from fedsim.run.records import sealed
from fedsim.scenario.copies import ORIGINS, original_of
from fedsim.topology import Mixing

SPARE = 2**16  # bytes held back, so that a run that fills the disk can still say how it ended
PACKAGES = ("torch", "numpy", "flwr", "mlflow", "pydantic", "pyarrow")


def remove(file: Path) -> None:
    """A file, or a folder with all that is in it."""
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink()


def lock(folder: Path) -> int:
    """Holds the folder until the file descriptor is closed or the process ends. Raises FedsimError where another process holds it."""
    with writing(folder / "lock"):
        file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        who = os.read(file, 100).decode() or "another process"
        os.close(file)
        raise FedsimError(f"{folder}: {who} is at work on it") from None
    with suppress(OSError):  # on a full disk the lock holds too
        os.truncate(file, 0)
        os.write(file, f"process {os.getpid()}".encode())
    return file


def write_scenario(folder: Path, resolved: str, own: Mapping[str, Path]) -> None:
    """What a run is made from: scenario.yaml, and the user's own modules within parts/. Raises RunError where it can't be written."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scenario.yaml").write_text(resolved)
    keep_copies(folder, own)


def keep_copies(folder: Path, own: Mapping[str, Path]) -> None:
    """The user's own modules within parts/, and where they were copied from. Raises RunError where they can't be written."""
    where = {name: str(original_of(name, file)) for name, file in own.items()}
    with writing(folder / "parts"):
        for name, file in own.items():
            target = folder / "parts" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not (target.exists() and target.samefile(file)):
                shutil.copy2(file, target)
    if own:
        write_json(folder / "parts" / ORIGINS, where)


def code_hash(own: Mapping[str, Path]) -> str | None:
    """sha256, hex, of the user's own modules; None where there are none."""
    digest = hashlib.sha256()
    for name, file in sorted(own.items()):
        digest.update(f"{name} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest() if own else None


def make_upper(
    root: Path, name: str, digits: str, runs: Mapping[str, Mapping[str, Any]] | None = None, scenario: Path | None = None
) -> Path:
    """A new folder `root/name/<UTC time>-<hash>`, the latest of that name; with `runs`, the upper folder of a sweep of these.

    `runs` says what each run is called in tables.

    Raises FedsimError where it can't be written.
    """
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{digits}"
    try:
        (root / name).mkdir(parents=True, exist_ok=True)
        while (root / name / stamp).exists():
            stamp += "0"
        folder = root / name / stamp
        folder.mkdir()
        if runs:
            created = datetime.now(UTC).isoformat(timespec="seconds")
            write_json(
                folder / "sweep.json",
                {"name": name, "scenario": str(scenario), "created": created, "runs": list(runs), "settings": dict(runs)},
            )
        link = root / name / f".latest-{os.getpid()}"
        link.symlink_to(stamp)
        link.replace(root / name / "latest")
    except OSError as error:
        raise FedsimError(f"{root / name}: can't write the run's folder: {error.strerror}") from error
    return folder


class RunWriter:
    """One run's files but its events: scenario.yaml, run.json, metrics.jsonl, log.txt, model.safetensors, labels.npz, parts/,
    clients/, and arrays of metrics.

    The folder belongs to the writer until `release`: the constructor raises FedsimError where another process is at work on it. All
    methods raise RunError where a file can't be written. `wall` are the seconds that the run has taken before.
    """

    def __init__(self, folder: Path, wall: float = 0.0) -> None:
        self.folder, self.began = folder, monotonic() - wall
        self.info: dict[str, Any] = {}
        self.lines = 0  # of metrics
        self.spare = folder / "spare.part"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        keep_inside(folder)
        self.lock = lock(folder)
        self.silence: Callable[[], None] = lambda: None  # ends that a fault is written into the log

    def begin(self, info: dict[str, Any], **ended: str) -> None:
        """Writes run.json for the first time: from now on the folder is a run. `ended`: it has come to its end already, with room made."""
        (self.make_room if ended else self.hold_room)()
        self._keep("events")
        self._keep("checkpoints")
        self._keep("clients")
        with writing(self.folder / "metrics.jsonl"):
            (self.folder / "metrics.jsonl").write_text("")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.update(
            **info
            | {"status": "running", "version": __version__, "versions": versions(), "commit": commit(), "source": source_hash()}
            | {"created": now}
            | ended
        )

    def go_on(self, info: dict[str, Any], records: Sequence[dict[str, Any]], segments: int) -> None:
        """Writes run.json again and leaves of evaluations and event segments what was there before a checkpoint."""
        self.hold_room()
        self.lines = len(records)
        with whole(self.folder / "metrics.jsonl") as draft:
            draft.write_text("".join(sealed(record, place) + "\n" for place, record in enumerate(records)))
        self._keep("events", *(f"{number:06d}.parquet" for number in range(segments)))
        self._keep("clients", *(f"{record.get('version', 0):09d}.parquet" for record in records))
        ended = ("reason", "again", "model", "final", "client_steps_per_second", "wall_seconds", "target_reached")
        self.info = {name: value for name, value in info.items() if name not in ended}
        self.update(status="running")

    def _keep(self, folder: str, *names: str) -> None:
        """Takes away what else is in a folder, left by a run of before."""
        with writing(self.folder / folder):
            for file in (self.folder / folder).glob("*"):
                if file.name not in names:
                    remove(file)

    def hold_room(self) -> None:
        """Sets bytes aside, and clears away drafts that a killed process has left."""
        with writing(self.spare):
            for draft in self.folder.rglob("*.part"):
                draft.unlink()
            self.spare.write_bytes(os.urandom(SPARE))
            self.silence()
            self.silence = last_words_to(self.folder / "log.txt")

    def make_room(self) -> None:
        """Gives back the bytes that were held back, before the last files are written."""
        self.spare.unlink(missing_ok=True)

    def release(self) -> None:
        """Others may work on the folder again."""
        self.silence()
        with suppress(OSError):  # nobody's any more, also for this process
            os.truncate(self.lock, 0)
        os.close(self.lock)

    def update(self, **changes: Any) -> None:
        """Writes run.json anew."""
        self.info |= changes
        write_json(self.folder / "run.json", self.info)

    def metrics(self, record: dict[str, Any]) -> None:
        """One line."""
        self._append("metrics.jsonl", sealed(record, self.lines))
        self.lines += 1

    def log(self, text: str) -> None:
        """A line with the wall seconds since the start."""
        self._append("log.txt", f"{monotonic() - self.began:9.2f} s  {text}")

    def _append(self, name: str, line: str) -> None:
        with writing(self.folder / name), (self.folder / name).open("a") as file:
            file.write(line + "\n")

    def model(self, models: Tensor, layout: Layout, buffers: Tensor, statistics: Layout, name: str = "model") -> None:
        """The models [h, d] by parameter name and their running statistics [h, b]; a server's one without the leading axis."""
        parts = layout.views(models) | statistics.views(buffers)
        rows = {name: (view[0] if len(models) == 1 else view).cpu().contiguous() for name, view in parts.items()}
        with whole(self.folder / f"{name}.safetensors") as draft:
            safetensors.torch.save_file(rows, draft)

    def labels(self, nodes: Tensor, counts: Tensor) -> None:
        """Of nodes [k] their samples of each class, int64 [k, classes]."""
        if counts.shape[1]:
            with whole(self.folder / "labels.npz") as draft, draft.open("wb") as file:
                np.savez_compressed(file, nodes=nodes.cpu().numpy(), counts=counts.cpu().numpy())

    def clients(self, version: int, round: int, nodes: Tensor, accuracy: Tensor, alone: bool = False) -> None:
        """Of nodes [k] their accuracies at one evaluation, after so many merges, with checksums; `alone`: in the place of all others."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        file = self.folder / "clients" / f"{version:09d}.parquet"
        with writing(file):
            file.parent.mkdir(exist_ok=True)
        table = pa.table({"node": nodes.numpy(), "accuracy": accuracy.numpy()}, metadata={"round": str(round), "version": str(version)})
        with whole(file) as draft:
            parquet.write_table(table, draft, compression="zstd", write_page_checksum=True)
        if alone:
            self._keep("clients", file.name)

    def arrays(self, name: str, version: int, arrays: Mapping[str, Any]) -> None:
        """Arrays that a metric leaves of one evaluation, after so many merges: NAME/VERSION.npz."""
        with writing(self.folder / name):
            (self.folder / name).mkdir(exist_ok=True)
        with whole(self.folder / name / f"{version:09d}.npz") as draft, draft.open("wb") as file:
            np.savez_compressed(file, **arrays)

    def graph(self, mixing: Mixing) -> None:
        """Who hears whom among peers: ends of the messages, int64 [messages] each, the number of nodes, and the spectral gap."""
        hearer, sender = mixing.edges
        with whole(self.folder / "graph.npz") as draft, draft.open("wb") as file:
            np.savez_compressed(file, hearer=hearer, sender=sender, nodes=mixing.size, gap=mixing.gap())


@cache
def versions() -> dict[str, str]:
    """Of Python and the packages that results depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


@cache
def source_hash() -> str:
    """sha256, 16 digits, of the source of fedsim and of its methods: what a method's author edits, no version tells."""
    digest = hashlib.sha256()
    for package in ("fedsim", "strategies"):
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            for file in sorted(Path(folder).rglob("*.py")):
                digest.update(f"{package} {file.relative_to(folder)} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def commit() -> str | None:
    """The commit of the working folder, `+` for uncommitted changes; None where there is no git."""
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
