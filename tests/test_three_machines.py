"""docs/deployment.md, "Three machines in ten minutes": its commands, as they stand there, in three network namespaces on one switch."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fedsim.run.folders import RunFolder

ROOT = Path(__file__).resolve().parents[1]
ADDRESSES = {"server": "10.99.7.1", "a": "10.99.7.2", "b": "10.99.7.3"}
pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="root and `ip` are needed for network namespaces"),
]


def commands() -> list[tuple[str, str]]:
    """Of the page's section, in order: the machine, and what is typed there."""
    text = (ROOT / "docs/deployment.md").read_text().partition("## Three machines in ten minutes")[2].partition("\n## ")[0]
    return re.findall(r"^(server|a|b)\$ (.*)$", text, re.MULTILINE)


class Machine:
    """A network namespace with a working folder of its own."""

    def __init__(self, name: str, folder: Path, tag: str) -> None:
        self.name, self.folder, self.space = name, folder / f"{name}.lan", f"{tag}-{name}"
        self.going: list[Any] = []
        self.folder.mkdir()
        (self.folder / "scenarios").symlink_to(ROOT / "scenarios")

    def start(self, command: str, log: str) -> Any:
        """As a shell of this machine would."""
        path = f"{self.folder.parent / 'bin'}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MACHINES": str(self.folder.parent)}
        with (self.folder / log).open("a") as out:
            words = ["ip", "netns", "exec", self.space, *shlex.split(command)]
            self.going.append(subprocess.Popen(words, cwd=self.folder, env=environment, stdout=out, stderr=subprocess.STDOUT))
        return self.going[-1]

    def run(self, command: str, log: str) -> None:
        assert self.start(command, log).wait(120) == 0, (command, self.said(log))

    def said(self, log: str) -> str:
        return (self.folder / log).read_text() if (self.folder / log).exists() else ""

    def end(self) -> None:
        for one in self.going:
            if one.poll() is None:
                one.kill()
            one.wait()


class Lan:
    """The three, and the switch between them."""

    def __init__(self, folder: Path) -> None:
        self.tag = f"fs{os.getpid() % 10_000}"
        self.switch = f"{self.tag}-switch"
        scripts = folder / "bin"
        scripts.mkdir()
        (scripts / "fedsim").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m fedsim "$@"\n')
        (scripts / "scp").write_text(
            '#!/bin/sh\nfor to; do :; done\nat="$MACHINES/${to%%:*}/${to#*:}"\nmkdir -p "$at" && cp -p "$1" "$2" "$3" "$at"\n'
        )
        for script in scripts.iterdir():
            script.chmod(0o755)
        self.machines = {name: Machine(name, folder, self.tag) for name in ADDRESSES}

    def __enter__(self) -> dict[str, Machine]:
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "link", "set", "br0", "up")
        names = "".join(f"{address} {name}.lan\n" for name, address in ADDRESSES.items())
        for name, one in self.machines.items():
            ip("netns", "add", one.space)
            ip("-n", self.switch, "link", "add", "name", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", one.space)
            ip("-n", self.switch, "link", "set", f"to-{name}", "master", "br0", "up")
            ip("-n", one.space, "link", "set", "lo", "up")
            ip("-n", one.space, "address", "add", f"{ADDRESSES[name]}/24", "dev", "eth0")
            ip("-n", one.space, "link", "set", "eth0", "up")
            etc = Path("/etc/netns") / one.space
            etc.mkdir(parents=True)
            (etc / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        return self.machines

    def __exit__(self, *_: object) -> None:
        for one in self.machines.values():
            one.end()
            shutil.rmtree(Path("/etc/netns") / one.space, ignore_errors=True)
            with suppress(subprocess.CalledProcessError):
                ip("netns", "del", one.space)
        ip("netns", "del", self.switch)

    def cable(self, name: str, state: str) -> None:
        ip("-n", self.switch, "link", "set", f"to-{name}", state)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def until(true: Callable[[], Any], lan: Lan, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        said = {file.name: file.read_text()[-1500:] for one in lan.machines.values() for file in one.folder.glob("*.log")}
        assert time.monotonic() < end, said
        time.sleep(0.2)


@pytest.fixture
def lan(tmp_path: Path) -> Lan:
    return Lan(tmp_path)


def test_three_machines_in_ten_minutes(lan: Lan) -> None:
    typed = commands()
    assert [words.split()[1 if words.startswith("fedsim") else 0] for _, words in typed] == [
        *("certs", "scp", "scp", "serve", "doctor", "join", "join", "watch", "serve")
    ]
    with lan as machines:
        server = machines["server"]

        def rounds() -> int:
            found = [*server.folder.glob("runs/*/2*/workers.json")]
            return int((RunFolder(found[0].parent).workers or {"round": 0})["round"]) if found else 0

        for name, words in typed[:3]:
            machines[name].run(words, "certs.log")
        serving = server.start(typed[3][1], "serve.log")
        until(lambda: "0.0.0.0:7400 (TLS)" in server.said("serve.log"), lan)
        machines["a"].run(typed[4][1], "doctor.log")
        assert "failed" not in machines["a"].said("doctor.log")
        for name, words in typed[5:7]:
            machines[name].start(words, "join.log")
        until(lambda: rounds() > 5, lan)
        watching = machines["a"].start(typed[7][1], "watch.log")
        watched = lambda text: re.search(text, machines["a"].said("watch.log"))  # noqa: E731
        until(lambda: watched(r"  b +10\.\.19 +10\.99\.7\.3:\d+ "), lan)

        lan.cable("b", "down")
        until(lambda: watched(r"  b: lost since \d\d:\d\d:\d\d"), lan)
        assert "b: nodes 10..19 lost: nothing was heard of it for 10 s (since " in server.said("serve.log")
        alone = rounds()
        until(lambda: rounds() > alone + 5, lan)
        lan.cable("b", "up")
        until(lambda: watched(r"  b: there since"), lan)
        assert re.search(r"connected again after \d", machines["b"].said("join.log"))
        assert machines["b"].said("join.log").count("no connection") <= 8

        serving.send_signal(signal.SIGKILL)
        serving.wait()
        until(lambda: watched("no answer since"), lan)
        before = rounds()
        assert typed[8] == typed[3]
        serving = server.start(typed[8][1], "serve.log")
        until(lambda: rounds() > before + 5, lan)
        serving.send_signal(signal.SIGINT)
        assert serving.wait(120) == 130
        until(lambda: watching.poll() is not None or watched("stopped"), lan)
        assert len([*server.folder.glob("runs/*/2*")]) == 1
        assert "Traceback" not in "".join(
            machine.said(log) for machine in machines.values() for log in ("serve.log", "join.log", "watch.log")
        )
