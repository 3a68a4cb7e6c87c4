"""Two machines with a link between them: network namespaces, a pair of virtual interfaces, and a rate. Needs root."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SERVER, WORKER, SERVER6, WORKER6 = "10.77.0.1", "10.77.0.2", "fd77::1", "fd77::2"
NAME = "server.lan"


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


class Wire:
    """`server` and `worker` are names of namespaces."""

    def __init__(self, rate: str) -> None:
        self.server, self.worker = f"fedsim-{os.getpid()}-s", f"fedsim-{os.getpid()}-w"
        for name in (self.server, self.worker):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", self.server, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", self.worker)
        for name, four, six in ((self.server, SERVER, SERVER6), (self.worker, WORKER, WORKER6)):
            run("ip", "-n", name, "address", "add", f"{four}/24", "dev", "wire")
            run("ip", "-n", name, "address", "add", f"{six}/64", "dev", "wire", "nodad")
            run("ip", "-n", name, "link", "set", "wire", "up")
            run("tc", "-n", name, "qdisc", "add", "dev", "wire", "root", "tbf", "rate", rate, "burst", "32kb", "latency", "400ms")
            folder = Path("/etc/netns") / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{SERVER} {NAME}\n")

    def plug(self, there: bool) -> None:
        run("ip", "-n", self.worker, "link", "set", "wire", "up" if there else "down")

    def moved(self) -> tuple[int, int]:
        """Bytes from the worker and to it, all headers counted."""
        return tuple(
            int(run("ip", "netns", "exec", self.worker, "cat", f"/sys/class/net/wire/statistics/{kind}_bytes")) for kind in ("tx", "rx")
        )  # type: ignore[return-value]

    def within(self, name: str) -> tuple[str, ...]:
        """What goes before a command that shall run there."""
        return ("ip", "netns", "exec", name)

    def listening(self) -> int:
        """Ports at which anybody listens on the worker's side."""
        tables = run("ip", "netns", "exec", self.worker, "cat", "/proc/net/tcp", "/proc/net/tcp6")
        return sum(line.split()[3] == "0A" for line in tables.splitlines() if ":" in line.partition(" rem")[0])

    def remove(self) -> None:
        for name in (self.server, self.worker):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
            folder = Path("/etc/netns") / name
            (folder / "hosts").unlink(missing_ok=True)
            if folder.exists():
                folder.rmdir()


@contextmanager
def wire(rate: str) -> Iterator[Wire]:
    made = Wire(rate)
    try:
        yield made
    finally:
        made.remove()


class Star:
    """Some workers, each at the end of a link of its own; the server's ends are here. `rates`: of each the rate up and the rate down."""

    def __init__(self, rates: Sequence[tuple[str, str]]) -> None:
        self.workers = [f"fedsim-{os.getpid()}-{number}" for number in range(len(rates))]
        self.addresses = [f"10.78.{number}.1" for number in range(len(rates))]  # of the server, for each
        for number, (worker, address, (up, down)) in enumerate(zip(self.workers, self.addresses, rates, strict=True)):
            here = f"fs{os.getpid()}-{number}"
            run("ip", "netns", "add", worker)
            run("ip", "-n", worker, "link", "set", "lo", "up")
            run("ip", "link", "add", here, "type", "veth", "peer", "name", "wire", "netns", worker)
            for space, wire, own, rate in (((), here, address, down), (("-n", worker), "wire", f"10.78.{number}.2", up)):
                run("ip", *space, "address", "add", f"{own}/24", "dev", wire)
                run("ip", *space, "link", "set", wire, "up")
                run("tc", *space, "qdisc", "add", "dev", wire, "root", "tbf", "rate", rate, "burst", "8kb", "latency", "400ms")

    def within(self, name: str) -> tuple[str, ...]:
        """What goes before a command that shall run there."""
        return ("ip", "netns", "exec", name)

    def remove(self) -> None:
        for name in self.workers:  # and with them both ends of their links
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@contextmanager
def star(rates: Sequence[tuple[str, str]]) -> Iterator[Star]:
    made = Star(rates)
    try:
        yield made
    finally:
        made.remove()
