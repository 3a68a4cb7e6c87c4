"""What this machine has for runs: versions, disk, data, MLflow's store, memory, processor, devices. One finding each."""

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from fedsim import __version__
from fedsim.base.address import hide
from fedsim.base.memory import free_memory, memory
from fedsim.base.text import counted, size
from fedsim.transport.probe import Finding

PROJECT = "fedsim-flower"
TOLD = ("torch", "numpy", "flwr", "mlflow")  # versions that are named also where all is well
LITTLE = 1 << 30  # bytes free on a disk, below which checkpoints and events soon have no room
PATIENCE = 5.0  # seconds for MLflow's server
KINDS = (".npz", ".tsv", ".txt", ".csv", ".parquet")


def examine(runs: Path) -> Iterator[Finding]:
    """A finding a concern, the quick ones first; runs lie under `runs`."""
    python = f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}"
    yield Finding("fedsim", True, f"{__version__} at {Path(__file__).parents[1]}; {python}")
    yield _packages()
    yield _disk(runs)
    yield _data()
    yield _store(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs / 'mlflow.db'}")
    there, free = memory(), free_memory()
    little = "" if free > LITTLE else "a run takes some 600 MB at least; end what else takes memory, or use another machine"
    yield Finding("memory", free > LITTLE, f"{size(free)} of {size(there)} free", little)
    yield from _torch()


def _packages() -> Finding:
    """Those that are needed, beside what is known to work."""
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(text) for text in metadata.requires(PROJECT) or ()]
    except metadata.PackageNotFoundError:
        return Finding("packages", False, f"{PROJECT} is not installed, so what it needs is not known", f"pip install {PROJECT}")
    wrong, there = [], {}
    for one in needed:
        if one.marker and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            there[one.name] = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{one.name} is missing")
            continue
        if not one.specifier.contains(there[one.name], prereleases=True):
            wrong.append(f"{one.name} is {there[one.name]}, and {one.specifier} is due")
    if wrong:
        return Finding("packages", False, "; ".join(wrong), f"pip install --upgrade {PROJECT}")
    named = ", ".join(f"{name} {there[name]}" for name in TOLD if name in there)
    return Finding("packages", True, f"{named}; all {len(there)} as they are due")


def _disk(runs: Path) -> Finding:
    """Whether runs can be written, and how much room there is."""
    place = runs.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"fedsim")
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Finding("disk", False, f"{runs} can't be written: {error.strerror or error}", "another folder for runs: --runs FOLDER")
    cure = "" if free >= LITTLE else "make room, or another folder for runs: --runs FOLDER"
    return Finding("disk", free >= LITTLE, f"{size(free)} free for {runs}/", cure)


def _data() -> Finding:
    shelf = os.environ.get("FEDSIM_DATA")
    if not shelf:
        return Finding("data", True, "FEDSIM_DATA is not set: `digits`, files beside a scenario and `hub:` are there")
    folder = Path(shelf).expanduser()
    if not folder.is_dir():
        return Finding("data", False, f"FEDSIM_DATA is {shelf}, which is no folder", "name the folder of your data sets, or unset it")
    names = sorted(
        {file.parent.name if file.parent != folder else file.stem for file in folder.glob("*/*") if file.suffix in KINDS}
        | {file.stem for file in folder.glob("*") if file.suffix in KINDS}
    )
    return Finding("data", True, f"FEDSIM_DATA is {shelf}: {', '.join(names) or 'nothing that a scenario can name'}")


def _store(uri: str) -> Finding:
    """MLflow's store, as far as it shows without MLflow."""
    import sqlite3

    from fedsim.report.mlflow.places import database_of
    from fedsim.report.mlflow.store import check_file, why

    database = database_of(uri)
    if database is None:
        return _server(uri) if re.match(r"https?://", uri) else Finding("mlflow", True, f"{hide(uri)}; not looked into")
    if not database.exists():
        return Finding("mlflow", True, f"{uri} is made by the first run")
    try:
        check_file(database)
    except sqlite3.Error as error:
        return Finding("mlflow", False, f"{uri}: {why(error, uri)}", "runs go on without it; `fedsim track RUN` uploads later")
    return Finding("mlflow", True, f"{uri}, {size(database.stat().st_size)}")


def _server(uri: str) -> Finding:
    from urllib.error import HTTPError, URLError
    from urllib.parse import urlsplit
    from urllib.request import urlopen

    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]  # no password is needed to ask how it is
    cure = "runs go on without it; start it, or correct MLFLOW_TRACKING_URI; `fedsim track RUN` uploads later"
    try:
        with urlopen(f"{parts.scheme}://{host}{parts.path.rstrip('/')}/health", timeout=PATIENCE) as answer:
            return Finding("mlflow", True, f"{hide(uri)} answers: {answer.read(100).decode(errors='replace').strip()}")
    except HTTPError as error:
        return Finding("mlflow", False, f"{hide(uri)} answers {error.code} {error.reason}: this is no MLflow server", cure)
    except (URLError, OSError, ValueError) as error:
        return Finding("mlflow", False, f"{hide(uri)} can't be reached: {getattr(error, 'reason', error)}", cure)


def _torch() -> Iterator[Finding]:
    """What computes."""
    try:
        import torch
    except Exception as error:  # a library that it needs, a file that is broken
        yield Finding("torch", False, f"can't be imported: {error}", f"pip install --upgrade {PROJECT}")
        return
    from fedsim.base.devices import cores

    vectors = torch.backends.cpu.get_cpu_capability()
    yield Finding("processor", True, f"{_processor()}, {vectors}; {counted(cores(), 'core')} for fedsim")
    yield Finding("threads", True, "one a process, as small models are fastest with; `engine.threads` and `engine.processes` change that")
    if not torch.cuda.is_available():
        yield Finding("devices", True, "cpu; no CUDA device")
        return
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        yield Finding("devices", True, f"cuda:{number} {about.name}, {size(about.total_memory)}")


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", file.read_text(), re.M) if file.is_file() else None
    return found[1].strip() if found else platform.processor() or platform.machine()
