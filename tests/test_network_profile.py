"""What a measured world foretells, beside what then happens on real links: `make test-network`, as root."""

import os
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wires import Star, star

from fedsim.deploy.measuring import profile
from fedsim.deploy.serve import Service
from fedsim.deploy.worlds import table, text
from fedsim.run.building import Tasks, build
from fedsim.run.crossing import crossing
from fedsim.run.folders import RunFolder
from fedsim.scenario import load
from fedsim.transport.identity import ServerIdentity

pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("tc"), reason="needs root, ip and tc"),
]

RATES = {50: [("3mbit", "8mbit"), ("1200kbit", "4mbit")], 2: [("8mbit", "16mbit"), ("3mbit", "8mbit")]}  # up and down, of each worker
TARGET = 0.5
SLOW = """
from dataclasses import dataclass
from time import sleep
from strategies.fedavg import FedAvg
from strategies.fedbuff import FedBuff
from strategies.scaffold import Scaffold

class Resting:
    def local_update(self, received, memory, local):
        sleep(0.02 * self.train.steps)
        return super().local_update(received, memory, local)

@dataclass(frozen=True)
class SlowAvg(Resting, FedAvg):
    pass

@dataclass(frozen=True)
class SlowBuff(Resting, FedBuff):
    pass

@dataclass(frozen=True)
class SlowScaffold(Resting, Scaffold):
    pass
"""
BASE = """
task: {data: digits, partition: {name: dirichlet, nodes: NODES, alpha: 1.0}, model: {name: mlp, hidden: [WIDTH]}}
strategy: slow:SlowAvg
schedule: {name: rounds, cohort: all}
train: {steps: 5, batch: 16, lr: 0.3}
stop: {rounds: 6}
evaluate: {every: 1 rounds}
checkpoint: none
track: none
deploy: {start_with: all}
"""


def configurations(nodes: int) -> dict[str, list[str]]:
    """None of them is the one that was measured."""
    many = nodes > 2
    first, size, busy = (25, 10, 30) if many else (1, 1, 2)
    return {
        "all": [f"stop.rounds={4 if many else 6}"],
        "long": ["train.steps=40", f"stop.rounds={4 if many else 6}"],
        "topk": ["uplink={name: topk, fraction: 20 %}", f"stop.rounds={6 if many else 8}"],
        "scaffold": ["strategy=slow:SlowScaffold", f"stop.rounds={3 if many else 5}"],
        "first": [f"schedule={{name: rounds, cohort: all, wait_for: {first}, late: keep}}", f"stop.rounds={6 if many else 9}"],
        "buffered": [
            "strategy=slow:SlowBuff",
            f"schedule={{name: buffered, size: {size}, concurrency: {busy}}}",
            f"stop.rounds={12 if many else 16}",
        ],
    }


def deployed(links: Star, folder: Path, settings: list[str], nodes: int) -> RunFolder:
    """The run, with a process at the end of each link; the server is here."""
    [loaded] = load(folder / "it.yaml", settings)
    where = folder / "deployed" / loaded.hash
    service = Service(loaded, where, ["0.0.0.0:0"], ServerIdentity.plain(), lambda text: None)
    [address] = service.start()
    port, each, workers = address.rpartition(":")[2], nodes // 2, list[Any]()
    try:
        for number, (name, home) in enumerate(zip(links.workers, links.addresses, strict=True)):
            mine = f"{number * each}..{(number + 1) * each - 1}"
            words = ("--insecure", "--insecure-beyond-loopback", "--nodes", mine, "--folder", str(folder / f"{loaded.hash}-{number}"))
            before = ("nice", "-n", "-10", "taskset", "-c", str(number % (os.cpu_count() or 1)), *links.within(name))
            command = [*before, sys.executable, "-m", "fedsim", "join", f"{home}:{port}", *words]
            with (folder / f"worker{number}.log").open("a") as log:  # without `preexec_fn`: nothing is forked beside gRPC
                workers.append(subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT))
        info = service.build().execute(where)
        service.stop(info["status"], info["reason"])
        assert info["status"] == "finished", info["reason"]
        for worker in workers:
            worker.wait(60)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return RunFolder(where)


def merges(run: RunFolder) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Seconds of each merge, from the first dispatch on."""
    columns = run.columns
    time = columns["time"] / run.ticks_per_second
    at = columns["kind"] == 2
    _, first = np.unique(columns["version"][at], return_index=True)
    found: np.ndarray[Any, np.dtype[np.float64]] = time[at][first] - time[columns["kind"] == 0][0]
    return found


def to_target(run: RunFolder) -> float:
    """Seconds from the first dispatch until the target: a server waits for its workers before."""
    began = float(run.columns["time"][run.columns["kind"] == 0][0] / run.ticks_per_second)
    found = crossing([record | {"time/seconds": max(0.0, record["time/seconds"] - began)} for record in run.metrics], TARGET, 1)
    assert found is not None, run.column("test/accuracy")
    return found["seconds"]


def tau(one: list[float], other: list[float]) -> float:
    """Kendall's, without ties."""
    signs = [np.sign(one[a] - one[b]) * np.sign(other[a] - other[b]) for a, b in combinations(range(len(one)), 2)]
    return float(np.mean(signs))


@pytest.mark.parametrize(("nodes", "width"), [(50, 200), (2, 2500)])
def test_the_simulated_clock_foretells_the_wall(nodes: int, width: int, tmp_path: Path) -> None:
    """Six configurations, simulated in a world that one other run was measured for; 25 nodes a worker, and one."""
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "it.yaml").write_text(BASE.replace("NODES", str(nodes)).replace("WIDTH", str(width)))
    sampled = ["schedule.sampling={name: bernoulli, chance: 30 %}"] if nodes > 2 else []
    cases, tasks, lines = configurations(nodes), Tasks(), [""]
    with star(RATES[nodes]) as links:
        small = ["uplink={name: topk, fraction: 2 %}", "stop.rounds=6"]  # other sizes of messages
        calibration = [["stop.rounds=10"], *([] if sampled else [small])]
        found = profile(*(deployed(links, tmp_path, [*sampled, *settings, "seed=1"], nodes) for settings in calibration))
        (tmp_path / "world.yaml").write_text(text(found, "a run"))
        (tmp_path / "foretold.yaml").write_text("extends: [it.yaml, world.yaml]\n")
        lines += [*table(found), (tmp_path / "world.yaml").read_text()]
        real = {name: deployed(links, tmp_path, settings, nodes) for name, settings in cases.items()}
    off, reached = [], []
    lines.append("configuration    wall s  simulated s     off  merges off: median  worst   to target: wall s  simulated s")
    for name, settings in cases.items():
        [loaded] = load(tmp_path / "foretold.yaml", settings)
        build(loaded, tasks).execute(tmp_path / "simulated" / name)
        run = RunFolder(tmp_path / "simulated" / name)
        wall, clock = merges(real[name]), merges(run)
        assert len(wall) == len(clock)
        for way in ("up", "down") if name not in ("first", "buffered") else ():  # there who is under way at the end is time's to say
            assert real[name].info["final"][f"traffic/bytes_{way}"] == run.info["final"][f"traffic/bytes_{way}"]
        each = np.abs(clock / wall - 1)
        off.append(clock[-1] / wall[-1] - 1)
        reached.append((to_target(real[name]), to_target(run)))
        lines.append(
            f"{name:13}  {wall[-1]:8.2f}  {clock[-1]:11.2f}  {off[-1]:+6.1%}  {np.median(each):18.1%}  {each.max():5.1%}"
            f"   {reached[-1][0]:17.2f}  {reached[-1][1]:11.2f}"
        )
    order = tau([wall for wall, _ in reached], [clock for _, clock in reached])
    middle, worst = float(np.median(np.abs(off))), float(np.max(np.abs(off)))
    lines.append(f"{nodes} nodes: off by {middle:.1%} in the median, {worst:.1%} at worst; Kendall's tau of times to target {order:.2f}")
    print("\n".join(lines))
    assert middle <= 0.05 and worst <= 0.1 and order >= 0.9
