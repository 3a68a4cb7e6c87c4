"""Who is not let in: one line with cause and cure, exit code 2, at once where waiting mends nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deployed import Worker, threads, written
from launch import call
from outposts import until
from trust import folders, server_of, serving, times, web

from fedsim import __version__
from fedsim.deploy import join
from fedsim.deploy.serve import Service
from fedsim.scenario import load
from fedsim.transport.identity import ServerIdentity
from fedsim.transport.messages_pb2 import VERSION, Refusal

__all__ = ["threads"]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders(tmp_path_factory.mktemp("pki"))


def joined(target: str, *words: object) -> str:
    """What a worker that is not let in says on standard error."""
    result = call("join", target, "--folder", "worker", *words)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_servers_that_a_worker_does_not_trust(pki: Path, folder: Path) -> None:
    mine = ("--certificate", pki / "good/a.pem")
    with serving(server_of(pki / "other")) as target:
        said = joined(target, *mine)
        assert f"{target}: tls: " in said and f"is not certified by {pki / 'good/ca.pem'}" in said and "copy ca.pem" in said
    with serving(server_of(pki / "late")) as target:
        said = joined(target, *mine)
        assert f"expired on {times(pki / 'late', 'server')[1]}" in said and "fedsim certs" in said
    with serving(server_of(pki / "named")) as target:
        said = joined(target, *mine)
        assert "is for elsewhere.lan, 10.0.0.5, not for localhost" in said and "fedsim certs --server localhost" in said


def test_workers_that_a_server_does_not_trust(pki: Path, folder: Path) -> None:
    said = joined("localhost:1", "--certificate", pki / "late/a.pem")
    assert f"{pki / 'late/a.pem'}" in said and times(pki / "late", "a")[1] in said
    with serving(server_of(pki / "good")) as target:
        stranger = pki / "mixed"
        stranger.mkdir()
        for name, of in (("a.pem", "other"), ("a.key", "other"), ("ca.pem", "good")):
            (stranger / name).write_bytes((pki / of / name).read_bytes())
        (stranger / "a.key").chmod(0o600)
        said = joined(target, "--certificate", stranger / "a.pem")
        assert str(stranger) in said and "fedsim certs" in said
    tokens = ServerIdentity.folder(pki / "tokens")
    wrong = folder / "wrong.token"
    wrong.write_text("x" * 30 + " a all\n")
    wrong.chmod(0o600)
    (folder / "ca.pem").write_bytes((pki / "tokens/ca.pem").read_bytes())
    with serving(tokens) as target:
        assert "none of this server's" in joined(target, "--token-file", wrong)


def test_other_servers_and_other_versions(pki: Path, folder: Path) -> None:
    with web() as target:
        assert f"{target}: tls: {target} does not speak TLS" in joined(target, "--certificate", pki / "good/a.pem")
        assert f"{target}: http/2: the server speaks HTTP/1" in joined(target, "--insecure")
    cause = f"the worker has fedsim {__version__}, the server 0.1"
    with serving(ServerIdentity.plain(), lambda hello: Refusal(reason=VERSION, cause=cause, cure="install the same")) as target:
        assert f"the server refused: {cause}; install the same" in joined(target, "--insecure")


SCENARIO = """
task: {data: digits, partition: {name: dirichlet, nodes: 6, alpha: 0.5}, model: logistic}
schedule: {name: rounds, cohort: 4}
strategy: fedavg
train: {epochs: 1, batch: 32, lr: 0.1}
deploy: {silence: 20 s}
stop: {rounds: 3}
"""


@pytest.fixture
def served(tmp_path: Path, threads: None) -> Iterator[Callable[..., str]]:
    """Has a worker join a server, and gives what becomes of it."""
    [loaded] = load(written(tmp_path, SCENARIO))
    service = Service(loaded, tmp_path / "run", ["127.0.0.1:0"], ServerIdentity.plain(), lambda text: None)
    [address] = service.start()
    alive = list[Worker]()

    def join(nodes: str, stays: bool = False) -> str:
        worker = Worker(address, nodes, tmp_path / f"worker {nodes} {len(alive)}")
        alive.append(worker)
        if stays:
            until(lambda: any(session.joined for session in service.hub.desk.sessions.values()), 60)
        else:
            worker.join(60)
        return worker.why

    yield join
    service.stop("finished", "the test is over")
    for worker in alive:
        worker.join(20)


def test_nodes_that_are_taken_or_that_there_are_not(served: Callable[..., str]) -> None:
    served("0..2", stays=True)
    said = served("2..3")
    assert "node 2, which 127.0.0.1:" in said and "is hosted by 127.0.0.1:" in said
    assert "there is no node 9999999; this run has nodes 0..5" in served("0..9999999")


EDGES = "strategy: fedavg\nschedule: {name: hierarchy, edges: 2}\n"
SIMULATED = {
    "schedule": "task: {data: digits, partition: {name: iid, nodes: 4}, model: logistic}\n" + EDGES,
    "task.models": "task: {data: digits, partition: {name: iid, nodes: 4}, model: logistic, models: {few: mlp}, public: 100}\n"
    "groups: {few: 2, rest: 2}\nstrategy: fedmd\nschedule: rounds\n",
    "own data, schedule": "task: {data: x.npz, partition: {name: own, nodes: 4, shape: [2], labels: [0, 1]}, model: logistic}\n" + EDGES,
}


@pytest.mark.parametrize(("key", "text"), SIMULATED.items(), ids=SIMULATED)
def test_what_is_simulated_only_is_refused_at_once(key: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anybody may join, and nothing is left of it; the run before stays the latest."""
    monkeypatch.setattr(Service, "start", lambda service: pytest.fail("it listens"))
    (before := folder / "runs/it/20260101-000000-0").mkdir(parents=True)
    file = written(folder, text + "train: {steps: 1, batch: 8, lr: 0.1}\nstop: {rounds: 2}\n")
    result = call("serve", file, "--insecure")
    assert result.exit_code == 2 and f"{key.rpartition(' ')[2]}: " in result.stderr and "it.yaml:" in result.stderr, result.output
    assert [*before.parent.glob("2*")] == [before] and (before.parent / "latest").resolve() == before.resolve()


OTHERS = {
    "setting": ({"hash": "x"}, "`train.lr` is 0.2 there and 0.1 here"),
    "code": ({"code": "x"}, "own code differs"),
    "model": ({"parameters": 12}, "its model has 12 parameters, the server's 650"),
    "data": ({"data": "x"}, "its data are others than the server's"),
}


@pytest.mark.parametrize(("found", "said"), OTHERS.values(), ids=OTHERS)
def test_who_found_something_else(found: dict[str, object], said: str, served: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = join.prepare

    def other(**setup: Any) -> Any:
        trainer, facts = prepare(**setup)
        return trainer, facts | {"settings": facts["settings"] | {"train.lr": 0.2}} | found

    monkeypatch.setattr(join, "prepare", other)
    assert said in served("0..2")
