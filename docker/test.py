"""`make docker-test`: builds the CPU image with buildah and runs what compose.yaml says, to the end of a run. As root, without a daemon.

BUILD_FLAGS: further words of `buildah build`, such as mounts of a package index; MIRROR: of Debian; KEEP: a folder for what is built, whose
base the next call takes. Services run in a network namespace of their own, and their names mean its loopback.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
RELEASE, PACKAGES, USER = "bookworm", "python3,python3-venv,ca-certificates", 1000


class Machine:
    """Buildah's store, the image, and one container of it in which all services run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.space = folder, f"fedsim-{os.getpid()}"
        self.container = ""

    def buildah(self, *words: str) -> list[str]:
        return ["buildah", "--storage-driver", "vfs", "--root", str(self.folder / "store"), "--runroot", str(self.folder / "run"), *words]

    def build(self) -> str:
        """The image's id."""
        base, image = self.folder / "base", self.folder / "image"
        if not (base / "usr/bin/python3").exists():
            mirror = os.environ.get("MIRROR", "http://deb.debian.org/debian")
            call(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", RELEASE, str(base), mirror])
        if subprocess.run(self.buildah("inspect", "--type", "image", "fedsim-base"), capture_output=True).returncode:
            empty = said(self.buildah("from", "scratch"))
            call(self.buildah("add", "--quiet", empty, str(base), "/"))
            call(self.buildah("commit", "--quiet", "--rm", empty, "fedsim-base"))
        flags = shlex.split(os.environ.get("BUILD_FLAGS", ""))
        words = [
            "build",
            "--isolation",
            "chroot",
            "--format",
            "docker",
            "--pull-never",
            "--build-arg",
            "BASE=localhost/fedsim-base",
        ]
        ignore = ["--ignorefile", str(ROOT / "docker/Dockerfile.dockerignore"), "--iidfile", str(image)]
        call(self.buildah(*words, *ignore, *flags, "-f", str(ROOT / "docker/Dockerfile"), "-t", "fedsim:cpu", str(ROOT)))
        return image.read_text().strip()

    def open(self, image: str, names: Sequence[str]) -> None:
        """A container, and a network where these names are known."""
        hosts = [f"--add-host={name}:127.0.0.1" for name in names]
        self.container = said(self.buildah("from", "--pull-never", *hosts, image))
        call(["ip", "netns", "add", self.space])
        call(["ip", "-n", self.space, "link", "set", "lo", "up"])

    def close(self) -> None:
        if self.container:
            for left in said(["ip", "netns", "pids", self.space]).split():
                with suppress(ProcessLookupError):
                    os.kill(int(left), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", self.space], check=False)
            subprocess.run(self.buildah("rm", self.container), stdout=subprocess.DEVNULL, check=False)

    def command(self, service: dict[str, Any], volumes: Path, command: Sequence[str]) -> list[str]:
        """What runs a command as the service would."""
        words = ["run", "--isolation", "chroot", "--user", str(USER)]
        for volume in service.get("volumes", ()):
            source, target, *mode = volume.split(":")
            place = (ROOT / "docker" / source).resolve() if source.startswith(".") else volumes / source
            words += ["--volume", ":".join([str(place), target, *mode])]
        for name, value in service.get("environment", {}).items():
            words += ["--env", f"{name}={value}"]
        return ["ip", "netns", "exec", self.space, *self.buildah(*words, self.container, "--", *command)]


def call(command: Sequence[str]) -> None:
    print("+", shlex.join(command), flush=True)
    subprocess.run(command, check=True)


def said(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def run(machine: Machine, file: Path, volumes: Path) -> None:
    """Starts services as compose.yaml has them, each when those are there that it depends on; raises where one fails."""
    compose = yaml.safe_load(file.read_text())
    services: dict[str, dict[str, Any]] = compose["services"]
    for name in compose["volumes"]:
        (volumes / name).mkdir()
        os.chown(volumes / name, USER, USER)
    going, logs = dict[str, Any](), {name: volumes / f"{name}.log" for name in services}
    try:
        while len(going) < len(services):
            for name, service in services.items():
                if name not in going and all(
                    ready(machine, services, going, volumes, *one) for one in service.get("depends_on", {}).items()
                ):
                    print(f"starting {name}", flush=True)
                    with logs[name].open("w") as log:
                        command = machine.command(service, volumes, service["command"])
                        going[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            time.sleep(1)
        check = machine.command(services["a"], volumes, ["sh", "-c", health(machine, "a", services)])
        wait(lambda: subprocess.run(check, capture_output=True).returncode == 0 or going["server"].poll() is not None, 180)
        for name, service in going.items():
            if name != "mlflow":
                code = service.wait(900)
                print(f"{name} ended with {code}", flush=True)
                if code:
                    raise RuntimeError(f"{name} ended with {code}")
        finished(machine, services, volumes)
    except BaseException:
        for name, log in logs.items():
            print(f"--- {name}\n{log.read_text()[-3000:] if log.exists() else ''}")
        raise
    finally:
        for one in going.values():
            if one.poll() is None:
                one.terminate()
                one.wait(30)


def ready(machine: Machine, services: Any, going: dict[str, Any], volumes: Path, name: str, how: dict[str, str]) -> bool:
    """Is a service as far as another needs it?"""
    if name not in going:
        return False
    if how["condition"] == "service_completed_successfully":
        if going[name].poll() not in (None, 0):
            raise RuntimeError(f"{name} ended with {going[name].returncode}")
        return going[name].poll() == 0
    if going[name].poll() is not None:
        raise RuntimeError(f"{name} ended with {going[name].returncode}")
    _, *test = services[name]["healthcheck"]["test"]
    return subprocess.run(machine.command(services[name], volumes, test), capture_output=True).returncode == 0


def health(machine: Machine, name: str, services: Any) -> str:
    """The image's own check."""
    about = json.loads(said(machine.buildah("inspect", "--type", "container", machine.container)))
    kind, check = about["Docker"]["config"]["Healthcheck"]["Test"]
    assert kind == "CMD-SHELL" and services[name]["environment"]["FEDSIM_CHECK"]
    return str(check)


def wait(true: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise RuntimeError("the image's health check never came to be good")
        time.sleep(1)


def finished(machine: Machine, services: Any, volumes: Path) -> None:
    """The run is whole in its folder and in MLflow, and four workers did it."""
    [file] = (volumes / "runs").glob("*/2*/run.json")
    info = json.loads(file.read_text())
    assert info["status"] == "finished" and len(info["deployed"]["workers"]) == 4, info
    found = "mlflow.search_runs(search_all_experiments=True)[['status', 'metrics.test/accuracy']]"
    ask = f"import mlflow; print({found}.to_json(orient='records'))"
    service = services["server"] | {"volumes": []}
    rows = json.loads(said(machine.command(service, volumes, ["python", "-c", ask])).splitlines()[-1])
    assert [row["status"] for row in rows] == ["FINISHED"] and rows[0]["metrics.test/accuracy"] == info["final"]["test/accuracy"], rows
    print(f"{info['reason']}, accuracy {info['final']['test/accuracy']:.3f}; MLflow has the same")


def main() -> None:
    if os.geteuid():
        sys.exit("docker/test.py: root is needed, for buildah's chroot and a network namespace")
    with tempfile.TemporaryDirectory(prefix="fedsim-image-") as folder:
        kept = Path(os.environ.get("KEEP") or folder).resolve()
        machine = Machine(kept)
        try:
            compose = ROOT / "docker/compose.yaml"
            machine.open(machine.build(), list(yaml.safe_load(compose.read_text())["services"]))
            with tempfile.TemporaryDirectory(prefix="fedsim-volumes-") as volumes:
                os.chmod(volumes, 0o755)
                run(machine, compose, Path(volumes))
        finally:
            machine.close()


if __name__ == "__main__":
    main()
