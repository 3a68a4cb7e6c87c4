"""Links as bad as real ones, at their real size: `make test-network`, as root."""

import asyncio
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from deployed import loop, replayed, written
from machines import Machines
from proxy import Proxy
from wires import NAME, SERVER, SERVER6, Wire, run, wire

pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("tc"), reason="needs root, ip and tc"),
]

SECOND = 1_000_000_000  # ticks
ONE = """
task: {data: digits, partition: {name: iid, nodes: 2}, model: {name: mlp, hidden: [WIDTH]}}
strategy: fedavg
schedule: {name: rounds, cohort: 1}
train: {steps: 1, batch: 8, lr: 0.01}
stop: {rounds: 1}
checkpoint: none
"""


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with Machines(tmp_path) as made:
        yield made


def linked(machines: Machines, link: Wire, width: int, *, target: str = f"{NAME}:7400", rounds: int = 1) -> Path:
    """A server and a worker at the ends of a link, over TLS; the scenario."""
    scenario = written(machines.folder, ONE.replace("WIDTH", str(width)).replace("rounds: 1", f"rounds: {rounds}"))
    names = [word for name in (NAME, SERVER, SERVER6) for word in ("--server", name)]
    machines.start("certs", "certs", *names, "--workers", "a").wait()
    listen = [word for place in (f"{SERVER}:7400", f"[{SERVER6}]:7400") for word in ("--listen", place)]
    machines.start("server", "serve", str(scenario), *listen, before=link.within(link.server))
    machines.start("worker", "join", target, "--nodes", "0..1", before=link.within(link.worker))
    return scenario


def test_thirty_megabytes_pass_a_link_of_one_megabit(machines: Machines) -> None:
    with wire("1mbit") as link:
        linked(machines, link, 100_000)
        machines.until(lambda: "joined" in machines.said("server"), 120)
        begun = time.monotonic()
        assert machines.ends("server", 900) == 0, machines.said("server")
        took, (up, down) = time.monotonic() - begun, link.moved()
    print(f"\n30 MB each way over 1 Mbit/s: {took:.0f} s; {up / 1e6:.2f} MB up, {down / 1e6:.2f} MB down with all headers")
    assert machines.run and machines.run.info["status"] == "finished" and "lost" not in machines.said("server")
    assert up < 1.2 * 30.0e6 and down < 1.2 * 30.0e6
    replayed(machines.run.path)


def test_a_link_that_is_gone_for_twenty_seconds(machines: Machines) -> None:
    with wire("8mbit") as link:
        linked(machines, link, 100_000, target=f"{SERVER}:7400")
        machines.until(lambda: link.moved()[1] > 12e6, 120)
        link.plug(False)
        time.sleep(20)
        link.plug(True)
        assert machines.ends("server", 300) == 0, machines.said("server")
        up, down = link.moved()
    print(f"\na link gone for 20 s in mid-transfer: {up / 1e6:.2f} MB up, {down / 1e6:.2f} MB down, of 30 MB each")
    assert machines.run and machines.run.info["final"]["work/dropped"] == 0
    assert down < 1.2 * 30.0e6
    replayed(machines.run.path)


def test_workers_only_call_out_over_either_family_and_by_name(machines: Machines) -> None:
    """Three workers one after the other: by name, by IPv4, by IPv6; the doctor agrees."""
    with wire("100mbit") as link:
        scenario = linked(machines, link, 10, rounds=1000000)
        identity = ("--certificate", "certs/a.pem")
        machines.until(lambda: f"at {SERVER}:7400, [{SERVER6}]:7400 (TLS)" in machines.said("server"))
        for number, target in enumerate((f"{NAME}:7400", f"{SERVER}:7400", f"[{SERVER6}]:7400")):
            doctor = machines.start(f"doctor {number}", "doctor", target, *identity, before=link.within(link.worker))
            assert doctor.wait(60) == 0, machines.said(f"doctor {number}")
            if number:
                words = ("join", target, "--nodes", "0..1", "--folder", f"w{number}", *identity)
                machines.start("worker", *words, before=link.within(link.worker))
            machines.until(lambda number=number: machines.said("server").count("joined") == number + 1, 120)
            assert link.listening() == 0
            worker = machines.all["worker"]
            worker.terminate()
            assert machines.ends("worker") == 0
        assert scenario.exists()


def test_a_clock_an_hour_ahead(machines: Machines) -> None:
    """The worker's wall clock by a patched `time.time`, its monotonic clock by a time namespace."""
    with wire("100mbit") as link:
        scenario = written(machines.folder, ONE.replace("WIDTH", "10").replace("rounds: 1", "rounds: 20"))
        machines.start("certs", "certs", "--server", SERVER, "--workers", "a").wait()
        machines.start("server", "serve", str(scenario), "--listen", f"{SERVER}:7400", before=link.within(link.server))
        ahead = ("unshare", "--time", "--monotonic", "3600", "--boottime", "3600", "--fork")
        code = "import time; now = time.time; time.time = lambda: now() + 3600\nfrom fedsim.commands.cli import main\nmain()"
        words = ("join", f"{SERVER}:7400", "--nodes", "0..1")
        machines.start("worker", *words, before=(*link.within(link.worker), *ahead), code=code)
        assert machines.ends("server", 120) == 0, machines.said("server")
    assert machines.run and machines.run.info["final"]["work/dropped"] == 0
    columns = machines.run.columns
    assert all(columns[name].max() < 60 * SECOND for name in ("down", "work", "up"))
    replayed(machines.run.path)


def test_an_idle_worker_stays_through_a_proxy_that_cuts_after_a_minute(machines: Machines) -> None:
    proxy = asyncio.run_coroutine_threadsafe(Proxy(machines.port).start(), loop()).result(10)
    proxy.idle = 60.0
    machines.serve(written(machines.folder, ONE.replace("WIDTH", "10")))
    machines.join("0", port=proxy.port)
    machines.until(lambda: "node 0 joined" in machines.said("server"))
    before = proxy.connections
    time.sleep(600)
    assert proxy.connections == before and "lost" not in machines.said("server")
    machines.join("1")
    assert machines.ends("server") == 0
    print(f"\nidle for 10 minutes behind a proxy that cuts after 60 s: {proxy.connections} connection(s)")
    asyncio.run_coroutine_threadsafe(proxy.stop(), loop()).result(10)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder))
    try:
        yield folder
    finally:
        run("umount", "--lazy", str(folder))


@pytest.mark.parametrize("whose", ["server", "worker"])
def test_a_full_disk_loses_nothing(whose: str, machines: Machines) -> None:
    """It fills in the middle of a run and has room again some seconds later."""
    scenario = written(machines.folder, ONE.replace("WIDTH", "4000").replace("rounds: 1", "rounds: 60").replace("checkpoint: none", ""))
    with small_disk(machines.folder / ("runs" if whose == "server" else "worker-0..1"), "100m") as disk:
        machines.serve(scenario)
        machines.join("0..1")
        machines.until(lambda: machines.decisions >= 8)
        with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(1 << 16))
        time.sleep(8)
        gives_up = "failed: objects can't be written" in machines.said("server")  # and draws and says what came of it, before it ends
        states = {"server": machines.ends("server") if gives_up else machines.all["server"].poll(), "0..1": machines.all["0..1"].poll()}
        print(f"\nfull disk of the {whose}: {states}")
        print(machines.said("server")[-600:], machines.said("0..1")[-600:])
        (disk / "filler").unlink()
        if states["server"] is not None:
            assert states["server"] == 1 and "No space left" in machines.said("server")
            machines.serve(scenario)
        if states["0..1"] is not None:
            machines.join("0..1")
        assert machines.ends("server") == 0, machines.said("server")
        assert "Traceback" not in machines.said("server") + machines.said("0..1")
        assert machines.run and machines.run.info["status"] == "finished" and machines.run.info["final"]["work/dropped"] == 0
        replayed(machines.run.path)


@pytest.mark.parametrize("strategy", ["fedavg", "{name: fedavg, average: median}"])
@pytest.mark.parametrize(("workers", "width", "row"), [(4, 3100, 40), (16, 9950, 400)])
def test_memory_of_a_server_is_bounded(workers: int, width: int, row: int, strategy: str, machines: Machines) -> None:
    """Rows of `row` MB: two models and 64 MiB, in memory that is nobody's file, above what an idle server takes."""
    text = ONE
    for old, new in (
        ("WIDTH", f"{width}, {width}"),
        ("nodes: 2", f"nodes: {workers}"),
        ("cohort: 1", f"cohort: {workers}"),
        ("rounds: 1", "rounds: 3"),
    ):
        text = text.replace(old, new)
    server = machines.serve(written(machines.folder, text.replace("strategy: fedavg", f"strategy: {strategy}")))
    machines.until(lambda: "round 0" in machines.said("server"), 120)
    time.sleep(2)
    idle = memory(server.pid)
    peak = idle
    code = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport crowd\ncrowd.main()"
    machines.start("workers", f"127.0.0.1:{machines.port}", str(workers), code=code)
    while server.poll() is None:
        with suppress(OSError, IndexError):
            peak = tuple(map(max, peak, memory(server.pid)))
        time.sleep(0.01)
    above = [now - before for now, before in zip(peak, idle, strict=True)]
    print(f"\n{workers} x {row} MB, {strategy}: above an idle server {above[0]:.0f} MiB without a file, {above[1]:.0f} MiB in all")
    assert server.wait() == 0 and above[0] < 2 * row + 64
    assert machines.ends("workers") == 0, machines.said("workers")


def memory(pid: int) -> tuple[float, ...]:
    """MiB of a process: of its own, also where it was swapped out, and in all."""
    text = Path(f"/proc/{pid}/status").read_text()
    own, swapped, resident = (int(text.split(f"{name}:")[1].split()[0]) / 1024 for name in ("RssAnon", "VmSwap", "VmRSS"))
    return own + swapped, resident + swapped
