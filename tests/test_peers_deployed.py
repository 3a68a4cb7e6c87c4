"""Peers on real machines: the simulation's models without a server, and what happens where one of them is lost."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from deployed import Worker, deployed, replayed, simulated, threads, written
from machines import Machines

from fedsim.base.errors import BrokenMessage, FedsimError, SettingError
from fedsim.deploy import board, join, serve
from fedsim.deploy.peers import introducer
from fedsim.deploy.peers.door import ROLE, Door, Neighbour
from fedsim.deploy.peers.sealed import Seals
from fedsim.report.screen.watching import lines
from fedsim.run.building import Tasks
from fedsim.run.runner import Run
from fedsim.scenario import load
from fedsim.transport.authority import issue, parse_workers
from fedsim.transport.identity import Claim, ServerIdentity, WorkerIdentity
from fedsim.transport.messages_pb2 import FULL, Hello
from fedsim.transport.nodes import parse
from fedsim.transport.outlet import Outlet
from fedsim.transport.watching import Server

__all__ = ["threads"]
pytestmark = pytest.mark.usefixtures("threads")

TASK = "task: {data: digits, partition: {name: dirichlet, nodes: %d, alpha: 0.5}, model: logistic}\n"
BASE = "train: {steps: 2, batch: 16, lr: 0.1}\ndeploy: {silence: 20 s}\nstop: {rounds: 4}\nevaluate: {every: 2 rounds}\n"
WORKERS = ["0..2", "3", "4", "5"]


def peers(topology: str, strategy: str = "dsgd", more: str = "", nodes: int = 6) -> str:
    return TASK % nodes + BASE + f"strategy: {strategy}\nschedule: {{name: gossip, topology: {topology}}}\n" + more


REPLICAS = TASK % 6 + "deploy: {silence: 20 s}\nstop: {rounds: 4}\nevaluate: {every: 2 rounds}\n"
GRAPHS = {
    "ring": peers("ring"),
    "line": peers("line"),
    "tree": peers("tree"),
    "complete": peers("complete"),
    "exponential, push-sum": peers("exponential", "sgp"),
    "another peer each time": peers("one_peer_exponential"),
    "combine first, 8 bits": peers("ring", "{name: dsgd, order: combine_then_adapt}", "crosslink: qsgd\n"),
    "remembered estimates": peers("ring", "choco"),
    "sparse pushes": peers("one_peer_exponential", "sgp", "crosslink: {name: topk, fraction: 0.5}\n"),
    "statistics taken anew": peers("{name: final_merge, inner: ring}", nodes=4)
    .replace("logistic", "{name: resnet18, norm: batch, width: 4, groups: 2}")
    .replace("{every: 2", "{every: 4")
    .replace("rounds: 4", "rounds: 1"),
    "one byte": REPLICAS + "strategy: {name: one_byte, batch: 16}\n",
    "one byte, some": REPLICAS + "strategy: {name: one_byte, batch: 16}\nschedule: {name: rounds, cohort: 4}\n",
    "eggroll": REPLICAS + "strategy: {name: eggroll, population: 4, batch: 16}\n",
    "trackers": peers("ring", "{name: gradient_tracking, order: combine_then_adapt}"),
    "one last merge": peers("{name: final_merge, inner: ring}"),
    "moments": peers("ring").replace("lr: 0.1", "lr: 0.01, optimizer: adam, state: keep"),
}


RARE = {
    "line",
    "tree",
    "another peer each time",
    "statistics taken anew",
    "one byte, some",
    "trackers",
    "moments",
    "where models are evaluated",
    "push-sum",
}


def cases(known: dict[str, Any]) -> list[Any]:
    """Those that find little more are slow."""
    return [pytest.param(case, id=name, marks=pytest.mark.slow if name in RARE else ()) for name, case in known.items()]


@pytest.mark.parametrize("text", cases(GRAPHS))
def test_without_faults_peers_are_the_simulation(text: str, tmp_path: Path) -> None:
    file = written(tmp_path, text)
    info = deployed(file, tmp_path / "run", WORKERS)
    assert info["status"] == "finished", (info["reason"], info["why"])
    assert info["model"] == simulated(file, tmp_path / "plain")["model"]
    assert replayed(tmp_path / "run")
    for log in tmp_path.glob("plain/messages.log"):  # from which anybody may join
        assert all((tmp_path / f"worker-{nodes}" / "run" / log.name).read_bytes() == log.read_bytes() for nodes in WORKERS)


class Leaving(Outlet):
    """A worker's end that knows who it is and where it runs."""

    all: ClassVar[dict[tuple[str, str], "Leaving"]] = {}

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.loop = asyncio.get_running_loop()
        self.all[more["role"], more["nodes"]] = self


STOPPED = {
    "a neighbour": (peers("ring"), "4"),
    "where models are evaluated": (peers("one_peer_exponential"), "0..2"),
    "push-sum": (peers("exponential", "sgp"), "5"),
    "a replica": (REPLICAS + "strategy: {name: one_byte, batch: 16}\n", "5"),
}


@pytest.mark.parametrize("case", cases(STOPPED))
def test_the_others_finish_without_a_worker_that_stops(case: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, lost = case

    def stop(run: Run, workers: Any) -> None:
        def wait() -> None:
            while run.fed.round < 5:
                time.sleep(0.005)
            leaving = Leaving.all["train", lost]
            asyncio.run_coroutine_threadsafe(leaving.drain("stopped by hand"), leaving.loop)

        threading.Thread(target=wait, daemon=True).start()

    monkeypatch.setattr(join, "Outlet", Leaving)
    file = written(tmp_path, text.replace("rounds: 4", "rounds: 30").replace("every: 2", "every: 15"))
    info = deployed(file, tmp_path / "run", WORKERS, stop)
    assert info["status"] == "finished", (info["reason"], info["why"])
    assert any("are out from round" in line for line in info["said"]) and info["final"]["test/accuracy"] > 0
    assert replayed(tmp_path / "run")


STOPS = {
    "accuracy": peers("ring").replace("rounds: 4", "accuracy: 0.5, rounds: 40"),
    "patience": REPLICAS.replace("rounds: 4", "patience: 2 rounds, rounds: 40") + "strategy: {name: one_byte, batch: 16, lr: 1.0}\n",
}


@pytest.mark.parametrize("text", STOPS.values(), ids=STOPS)
def test_peers_end_together_by_what_was_measured(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And who watches at the introducer sees them."""
    seen = list[dict[str, Any]]()

    def meanwhile(run: Run, workers: list[Worker]) -> None:
        server = Server(workers[0].machine.target, WorkerIdentity(insecure=True))
        run.report = lambda run: seen.append(server.state()) if len(run.records) > len(seen) else None

    monkeypatch.setattr(board, "EVERY", 0.02)
    file = written(tmp_path, text)
    info = deployed(file, tmp_path / "run", ["0..2", "3..5"], meanwhile)
    assert info["status"] == "finished", (info["reason"], info["why"])
    assert sorted(one["nodes"] for one in seen[-1]["workers"]) == ["0..2", "3..5"] and "running  round" in lines(seen[-1])[0]
    plain = simulated(file, tmp_path / "plain")
    assert (info["model"], info["reason"]) == (plain["model"], plain["reason"]) and info["final"]["round"] < 40
    assert replayed(tmp_path / "run")


def test_peers_end_together_by_the_hosts_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is up in the second round here, and the evaluation after that is the last."""
    so_far = Run.so_far.fget
    assert so_far
    late = property(lambda run: so_far(run) | {"wall": 60.0 * (run.fed.round > 1)})
    monkeypatch.setattr(introducer.Introduced, "so_far", late)
    info = deployed(written(tmp_path, peers("ring").replace("rounds: 4", "wall: 59 s")), tmp_path / "run", ["0..2", "3..5"])
    assert info["status"] == "finished" and info["reason"] == "59 s of wall time", (info["reason"], info["why"])
    assert info["final"]["round"] == 2 and replayed(tmp_path / "run")


LONG = peers("ring").replace("20 s", "8 s").replace("rounds: 4", "rounds: 40").replace("every: 2", "every: 10")
LOST = {
    "a neighbour": (LONG, "4"),
    "where models are evaluated": (LONG.replace("topology: ring", "topology: one_peer_exponential"), "0..2"),
    "a replica": (REPLICAS.replace("20 s", "8 s").replace("rounds: 4", "rounds: 40") + "strategy: {name: one_byte, batch: 16}\n", "5"),
}


@pytest.mark.kill
@pytest.mark.parametrize(("text", "lost"), LOST.values(), ids=LOST)
def test_the_others_finish_without_a_worker_that_is_killed(text: str, lost: str, tmp_path: Path) -> None:
    with Machines(tmp_path) as machines:
        machines.serve(written(tmp_path, text))
        for nodes in WORKERS:
            machines.join(nodes)
        machines.until(lambda: machines.decisions >= 20, 120)
        machines.all[lost].kill()
        assert machines.ends("server") == 0, machines.said("server")
        assert "are out from round" in machines.said("server")
        run = machines.run
        assert run and run.info["status"] == "finished" and run.info["final"]["test/accuracy"] > 0
        assert all(machines.ends(nodes) == 0 for nodes in WORKERS if nodes != lost)
        replayed(run.path)


@pytest.mark.slow
def test_training_goes_on_while_the_introducer_is_dead(tmp_path: Path) -> None:
    with Machines(tmp_path) as machines:
        scenario = written(tmp_path, LONG)
        machines.serve(scenario)
        for nodes in ("0..2", "3..5"):
            machines.join(nodes)
        machines.until(lambda: machines.decisions >= 20, 150)
        machines.all["server"].kill()
        machines.all["server"].wait()
        machines.until(lambda: len([*tmp_path.glob("worker-*/*/model.safetensors")]) == 2, 120, ("0..2", "3..5"))
        machines.serve(scenario)
        assert machines.ends("server") == 0, machines.said("server")
        assert machines.ends("0..2") == machines.ends("3..5") == 0
        run = machines.run
        assert run and run.info["status"] == "finished" and len(run.metrics) == 5
        replayed(run.path)


def certified(folder: Path, text: str, **more: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """run.json of a run of two workers with certificates, and what the introducer said; more about each worker's machine."""
    issue(folder / "certs", ["127.0.0.1"], parse_workers("a=0..2,b=3..5"))
    [loaded] = load(written(folder, text))
    said, ended = list[str](), list[str]()
    service = serve.Service(loaded, folder / "run", ["127.0.0.1:0"], ServerIdentity.folder(folder / "certs"), said.append)
    [address] = service.start()
    run = service.build()

    def work(name: str, nodes: str) -> None:
        identity = WorkerIdentity.load(certificate=folder / "certs" / f"{name}.pem")
        machine = join.Machine(address, nodes, folder / name, folder, **more.get(name, {}))
        ended.append(asyncio.run(join.work(machine, identity, print)))

    workers = [threading.Thread(target=work, args=one, daemon=True) for one in (("a", "0..2"), ("b", "3..5"))]
    for worker in workers:
        worker.start()
    info = run.execute(folder / "run")
    service.stop(info["status"], info["reason"])
    for worker in workers:
        worker.join(20)
    assert info["status"] == "finished" and len(ended) == 2, (info["reason"], said, ended)
    assert info["model"] == simulated(folder / "it.yaml", folder / "plain")["model"]
    return info, said


def test_peers_show_each_other_certificates_that_name_their_nodes(tmp_path: Path) -> None:
    assert not any("relays" in line for line in certified(tmp_path, peers("ring"))[1])


def test_letters_to_a_peer_that_cannot_be_dialled_go_through_the_introducer(tmp_path: Path) -> None:
    text = peers("ring").replace("20 s", "4 s")
    assert "relays between nodes 0..2 and 3..5" in certified(tmp_path, text, b={"address": "127.0.0.1:1"})[1]


def test_only_who_a_letter_is_for_can_open_it(tmp_path: Path) -> None:
    for name in ("one", "other"):
        issue(tmp_path / name, ["127.0.0.1"], parse_workers("a=0..2,b=3..5"))
    a, b, c, forged = (
        Seals(name.encode() * 16, "run", WorkerIdentity.load(certificate=tmp_path / ca / f"{name}.pem"))
        for ca, name in (("one", "a"), ("one", "b"), ("one", "b"), ("other", "b"))
    )
    file = tmp_path / "letter"
    file.write_bytes(a.seal(b"model", b.me, a.known(b.me, [3, 4], b.shown), 7))
    key = b.known(a.me, [0], a.shown)
    assert b.open(file, a.me, key, 7) == b"model" and b"model" not in file.read_bytes()
    for reader, number in ((c, 7), (b, 8)):
        with pytest.raises(BrokenMessage):
            reader.open(file, a.me, key, number)
    for nodes, shown in (([3], forged.shown), ([0], b.shown), ([3], b.shown | {"key": forged.shown["key"]})):
        with pytest.raises(FedsimError, match="not vouched for"):
            a.known(b.me, nodes, shown)


CLAIMS = {
    "any": (Claim("a"), b"a" * 16, ""),
    "its own": (Claim("a", parse("0..2")), b"a" * 16, ""),
    "another's": (Claim("b", parse("3..5")), b"a" * 16, "is not for nodes 0..2"),
    "a stranger": (Claim("a"), b"z" * 16, "does not know"),
}


@pytest.mark.parametrize(("claim", "who", "why"), CLAIMS.values(), ids=CLAIMS)
def test_a_peer_speaks_for_its_own_nodes_only(claim: Claim, who: bytes, why: str) -> None:
    door = Door("run")
    assert door.welcome(Hello(worker=who, role=ROLE), claim).reason == FULL  # nobody has been introduced
    door.known = {b"a" * 16: Neighbour(b"a" * 16, "a", "", (0, 1, 2)), b"b" * 16: Neighbour(b"b" * 16, "b", "", (3, 4, 5))}
    answer = door.welcome(Hello(worker=who, role=ROLE), claim)
    assert why in answer.cause if why else list(answer.nodes) == [0, 1, 2]


REFUSED = {
    "strategy": peers("ring", "gradient_tracking"),
    "crosslink": peers("one_peer_exponential", "choco"),
    "stop.seconds": peers("ring", more="world: {compute: {job: 1 s}}\n").replace("rounds: 4", "seconds: 4"),
    "evaluate.every": peers("ring", more="world: {compute: {job: 1 s}}\n").replace("every: 2 rounds", "every: 2 s"),
    "schedule": peers("ring").replace("gossip", "pairwise") + "world: {compute: {job: 1 s}}\n",
}


@pytest.mark.parametrize(("key", "text"), REFUSED.items(), ids=REFUSED)
def test_what_peers_cannot_do_apart_is_refused_at_its_key(key: str, text: str, tmp_path: Path) -> None:
    [loaded] = load(written(tmp_path, text))
    with pytest.raises(SettingError) as refused:
        introducer.build(loaded, Tasks().get(loaded))
    assert refused.value.key == key
