"""Flower's own SuperLink and SuperNodes in processes, on loopback with TLS and node authentication; runs and what became of them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.request import urlopen

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedsim.transport.authority import issue, parse_workers

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "scenarios" / "flower_app"
BIN = Path(sys.executable).parent
NAP = 0.5  # seconds between questions whether something is so
PATIENCE = 600.0  # seconds until it is


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(home: Path) -> dict[str, str]:
    """Of each process: its FLWR_HOME, the programs that servers start by name, nothing reported or installed."""
    words = ("TELEMETRY_ENABLED=0", "DISABLE_UPDATE_CHECK=1", "DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1")
    flower = dict(f"FLWR_{word}".split("=") for word in words) | {"FLWR_HOME": str(home)}
    return os.environ | flower | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


class Flower:
    """Calls of `flwr` in a folder, by the connection `lab`."""

    def __init__(self, folder: Path, connection: str, **words: str) -> None:
        """`connection`: what the connections file says of it."""
        self.folder, self.home = folder, folder / "flower"
        self.environment = environment(self.home) | words
        self.home.mkdir(parents=True)
        (self.home / "config.toml").write_text(f'[superlink]\ndefault = "lab"\n[superlink.lab]\n{connection}\n')

    def flwr(self, *words: Any) -> str:
        """What `flwr WORDS` prints."""
        command = [BIN / "flwr", *map(str, words)]
        done = subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, app: Path = APP, options: Sequence[str] = (), **config: str) -> int:
        """Starts a run; its id."""
        words = self.folder / "run.toml"  # on a command line a value can't have both kinds of quotes
        words.write_text("".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in config.items()))
        return int(json.loads(self.flwr("run", app, "lab", "--run-config", words, *options, "--format", "json"))["run-id"])

    def over(self, number: int) -> bool:
        """Has the run's ServerApp ended? Asking Flower costs seconds, so its folder is looked at first."""
        infos = [json.loads(file.read_text()) for file in self.folder.glob("runs/*/2*/run.json")]
        return any(info["status"] != "running" for info in infos)

    def verdict(self, number: int) -> tuple[str, str]:
        """How the run has ended, as the list of runs has it, with its details."""
        until(lambda: self.over(number), lambda: self.said(number))
        found: list[dict[str, Any]] = [{}]

        def over() -> bool:
            found[0] = json.loads(self.flwr("list", "lab", "--run-id", number, "--format", "json"))["runs"][0]
            return str(found[0]["status"]).startswith("finished")

        until(over, lambda: self.said(number), 2.0)
        return found[0]["status"], json.dumps(found[0])

    def said(self, number: int) -> str:
        """What a run's ServerApp has said."""
        return self.flwr("log", number, "lab", "--show")

    def folders(self) -> list[Path]:
        """The runs' folders, the oldest first."""
        return sorted(file.parent for file in self.folder.glob("runs/*/2*/run.json"))


class Federation(Flower):
    """A SuperLink whose folder has `link.log`, the SuperNodes' logs, and `runs` of what ran there."""

    def __init__(self, folder: Path) -> None:
        self.port, self.processes = free_port(), dict[str, subprocess.Popen[bytes]]()
        ca = folder / "certs/ca.pem"
        super().__init__(folder, f'address = "127.0.0.1:{self.port}"\nroot-certificates = "{ca}"')
        issue(folder / "certs", ("localhost", "127.0.0.1"), parse_workers("a"))
        trust = [
            f"--ssl-{name}={folder / 'certs' / file}" for name, file in zip(("ca-certfile", "certfile", "keyfile"), FILES, strict=True)
        ]
        self._start("link", "flower-superlink", *trust, "--enable-supernode-auth", "--host=127.0.0.1", f"--port={self.port}", OFFLINE)

    def _start(self, name: str, *command: Any, home: Path | None = None) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            words, told = [str(word) for word in command], self.environment | ({"FLWR_HOME": str(home)} if home else {})
            self.processes[name] = subprocess.Popen(words, env=told, cwd=self.folder, stdout=log, stderr=log)

    def ready(self) -> None:
        """Waits until the SuperLink answers."""
        import ssl

        context = ssl.create_default_context(cafile=str(self.folder / "certs/ca.pem"))

        def answers() -> bool:
            with suppress(OSError), urlopen(f"https://127.0.0.1:{self.port}/health", context=context) as answer:
                return bool(answer.status == 200)
            return False

        until(answers, lambda: self.log("link"))

    def node(self, name: str, config: str, **environment: str) -> None:
        """A SuperNode with a key of its own, which is made known where it is new."""
        key = self.folder / f"{name}.key"
        if not key.exists():
            private, openssh = ec.generate_private_key(ec.SECP384R1()), serialization.PrivateFormat.OpenSSH
            key.write_bytes(private.private_bytes(serialization.Encoding.PEM, openssh, serialization.NoEncryption()))
            public = key.with_suffix(".pub")
            public.write_bytes(
                private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH) + b"\n"
            )
            self.flwr("supernode", "register", public, "lab")
        self.environment |= environment
        trust = f"--root-certificates={self.folder / 'certs/ca.pem'}", f"--auth-supernode-private-key={key}"
        address = f"--superlink=127.0.0.1:{self.port}", f"--port={free_port()}"
        self._start(name, "flower-supernode", *trust, *address, f"--node-config={config}", home=self.folder / name)
        self.environment = {word: value for word, value in self.environment.items() if word not in environment}

    def log(self, name: str) -> str:
        """What a process has said."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def kill(self, name: str) -> None:
        """With SIGKILL; what it had started ends by itself."""
        self.processes[name].kill()
        self.processes[name].wait()

    def over(self, number: int) -> bool:
        return END in self.log("link").partition(f"of run {number}")[2]

    def stop(self) -> None:
        """Ends all, the SuperLink last."""
        for one in reversed(self.processes.values()):
            one.terminate()
        for one in self.processes.values():
            try:
                one.wait(20)
            except subprocess.TimeoutExpired:
                one.kill()


END = "push-task-output"
FILES, OFFLINE = ("ca.pem", "server.pem", "server.key"), "--disable-runtime-dependency-installation"


def until(so: Any, why: Any, nap: float = NAP) -> None:
    """Waits until it is so; fails with what `why` tells."""
    end = monotonic() + PATIENCE
    while not so():
        assert monotonic() < end, why()
        sleep(nap)


@contextmanager
def federation(folder: Path, configs: Sequence[str] = ("partition-id=0", "partition-id=1")) -> Iterator[Federation]:
    """One with SuperNodes `n0`, `n1` ... of these node configs."""
    assert shutil.which("flower-superlink", path=str(BIN)), f"no flwr in {BIN}"
    one = Federation(folder)
    try:
        one.ready()
        for at, config in enumerate(configs):
            one.node(f"n{at}", config)
        yield one
    finally:
        one.stop()


@contextmanager
def simulation(folder: Path) -> Iterator[Flower]:
    """Flower's local simulation: the SuperLink that `flwr run` starts is ended."""
    port = free_port()
    one = Flower(folder, 'address = ":local:"', FLWR_LOCAL_SUPERLINK_HTTP_API_PORT=str(port))
    try:
        yield one
    finally:
        for place in Path("/proc").glob("[0-9]*/environ"):  # what was started for this folder and is still there
            with suppress(OSError):
                if f"FLWR_HOME={one.home}".encode() in place.read_bytes().split(b"\0") and int(place.parent.name) != os.getpid():
                    os.kill(int(place.parent.name), signal.SIGTERM)
