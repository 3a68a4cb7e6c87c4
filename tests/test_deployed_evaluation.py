"""Evaluations that workers make: of models on test samples of their own, and of what their nodes remember."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deployed import Worker, deployed, replayed, simulated, threads, written
from sklearn.datasets import load_digits

from fedsim.base.errors import FedsimError, SettingError
from fedsim.deploy import answering, own
from fedsim.deploy.decisions import Answer, Decision, parse
from fedsim.deploy.questions import judge, table, understood
from fedsim.deploy.serve import Service
from fedsim.run.folders import RunFolder
from fedsim.run.runner import Run
from fedsim.scenario import load
from fedsim.transport.identity import ServerIdentity
from fedsim.transport.messages_pb2 import Reply

__all__ = ["threads"]
pytestmark = pytest.mark.usefixtures("threads")

REST = "train: {epochs: 1, batch: 16, lr: 0.001}\nschedule: {name: rounds, cohort: 2}\nstop: {rounds: 3}\n"
OWN = "task: {data: {name: npz, file: xray.npz}, partition: {name: own, nodes: 3, %s}, model: logistic}\n" + REST
SERVED = "shape: [64], labels: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"
HOME, TESTED = np.arange(1797) % 7 // 3, np.arange(1797) % 5 == 4


@pytest.fixture
def wards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three folders, each with a file of training and test samples."""
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    x, y = load_digits(return_X_y=True)
    folders = [tmp_path / f"ward-{ward}" for ward in range(3)]
    for ward, folder in enumerate(folders):
        folder.mkdir()
        mine = {f"{name}{end}": of[(ward == HOME) & (bool(end) == TESTED)] for name, of in (("x", x), ("y", y)) for end in ("", "_test")}
        np.savez(folder / "xray.npz", **mine)
    ends = [(name, of, end) for name, of in (("x", x), ("y", y), ("ward", HOME)) for end in ("", "_test")]
    np.savez(tmp_path / "all.npz", **{f"{name}{end}": of[bool(end) == TESTED] for name, of, end in ends})
    return folders


def test_without_data_at_the_server_the_workers_evaluate(wards: list[Path], tmp_path: Path) -> None:
    """As in a simulation of all data by one who has them; the journal has sums, and the replay reaches them again."""
    tuned = "strategy: fedavg\nevaluate: {metrics: [accuracy, loss, clients, finetuned]}\n"
    tuned += "uplink: {name: ef21, inner: {name: topk, fraction: 0.5}}\ncheckpoint: {every: 1 rounds}\n"
    info = deployed(written(tmp_path, OWN % SERVED + tuned), tmp_path / "run", ["0", "1", "2"], data=wards, keep=True)
    assert info["status"] == "finished", info["reason"]
    assert replayed(tmp_path / "run", [([ward], folder) for ward, folder in enumerate(wards)])
    assert replayed(tmp_path / "run", replies=True)  # of its folder alone
    [*_, reply] = sorted((tmp_path / "run/replies").iterdir())
    reply.write_bytes(reply.read_bytes()[:-1] + b"?")
    with pytest.raises(FedsimError, match=r"node 0 had data of its own; .* --data 0=FOLDER, or --replies"):
        replayed(tmp_path / "run")
    with pytest.raises(FedsimError, match=f"{reply.name}: damaged"):
        replayed(tmp_path / "run", replies=True)
    reply.unlink()
    with pytest.raises(FedsimError, match=f"{reply.name}: missing"):
        replayed(tmp_path / "run", replies=True)
    plain = "task: {data: {name: npz, file: all.npz}, partition: natural, model: logistic}\n".replace(
        "natural", "{name: natural, by: ward}"
    )
    assert simulated(written(tmp_path, plain + REST + tuned), tmp_path / "plain")["model"] == info["model"]
    was, now = RunFolder(tmp_path / "plain").metrics, RunFolder(tmp_path / "run").metrics
    assert len(was) == len(now) == 4 and sum(one["jobs"] for one in info["deployed"]["workers"]) == now[-1]["work/updates"]
    for one, other in zip(was, now, strict=True):
        assert other["clients/answered"] == 3
        for name in ("test/accuracy", "test/loss", "clients/accuracy_mean", "clients/accuracy_worst_10"):
            assert other[name] == pytest.approx(one[name], rel=1e-6), name
        assert other["test/accuracy"] == one["test/accuracy"]  # counts
    for name in ("finetuned/accuracy", "finetuned/gain"):
        assert [record.get(name) for record in now] == pytest.approx([record.get(name) for record in was], abs=1e-9)
        assert now[-1][name] is not None


def test_peers_evaluate_each_on_its_own(wards: list[Path], tmp_path: Path) -> None:
    """The models are the simulation's, and each is judged where its test samples lie; the replay says the same."""
    rest = "schedule: {name: gossip, topology: ring}\nstrategy: dsgd\nevaluate: {metrics: [accuracy, loss, clients, consensus]}\n"
    rest += "train: {epochs: 1, batch: 16, lr: 0.001}\nstop: {rounds: 2}\ndeploy: {silence: 20 s}\n"
    data = "task: {data: {name: npz, file: %s.npz}, partition: {name: %s}, model: logistic}\n"
    own = data % ("xray", "own, nodes: 3, " + SERVED)
    info = deployed(written(tmp_path, own + rest), tmp_path / "run", ["0", "1", "2"], data=wards)
    assert info["status"] == "finished", (info["reason"], info["why"])
    plain = simulated(written(tmp_path, data % ("all", "natural, by: ward") + rest), tmp_path / "plain")
    assert plain["model"] == info["model"]
    assert replayed(tmp_path / "run", [([ward], folder) for ward, folder in enumerate(wards)])
    was, now = RunFolder(tmp_path / "plain").metrics, RunFolder(tmp_path / "run").metrics
    for one, other in zip(was, now, strict=True):
        assert other["clients/answered"] == 3
        for name in ("clients/accuracy_mean", "clients/accuracy_worst_10", "nodes/consensus"):
            assert other[name] == pytest.approx(one[name], rel=1e-6), name
    each = RunFolder(tmp_path / "plain").clients
    assert each and now[-1]["test/accuracy"] == pytest.approx(np.average(each[1], weights=np.bincount(HOME[TESTED])))


def test_who_is_lost_in_an_evaluation_has_said_nothing(wards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = list[Worker]()

    def lost(work: Any, question: Any, nodes: Any) -> Any:
        if question.round == 1 and 2 in nodes:
            workers[2].ended.cancel()
        return judge(work, question, nodes)

    def meanwhile(run: Run, those: list[Worker]) -> None:
        workers.extend(those)
        monkeypatch.setattr(Worker, "join", lambda worker, seconds: worker.ended.cancelled() or worker.ended.result(seconds))

    monkeypatch.setattr(answering, "judge", lost)
    text = OWN % SERVED + "strategy: fedavg\ndeploy: {silence: 3 s}\n"
    info = deployed(written(tmp_path, text), tmp_path / "run", ["0", "1", "2"], meanwhile, wards)
    assert info["status"] == "finished", info["reason"]
    assert [record["clients/answered"] for record in RunFolder(tmp_path / "run").metrics] == [3, 2, 2, 2]
    assert "evaluation in round 1: 2 of 3 nodes have answered" in info["said"]
    assert replayed(tmp_path / "run", [([ward], folder) for ward, folder in enumerate(wards)])


@pytest.mark.parametrize("strategy", ["fedper", "ditto"])
def test_what_nodes_remember_is_judged_where_it_lies(strategy: str, tmp_path: Path) -> None:
    """And so is what a node's own model becomes by more training, at the first evaluation and in the end."""
    text = "task: {data: digits, partition: {name: dirichlet, nodes: 4, alpha: 0.3}, model: {name: mlp, hidden: [8]}}\n"
    text += "evaluate: {metrics: [accuracy, loss, {name: finetuned, lr: 0.2, batch: 32}]}\n"
    file = written(tmp_path, text + REST.replace("0.001", "0.1") + f"strategy: {strategy}\n")
    info = deployed(file, tmp_path / "run", ["0..1", "2..3"])
    assert info["status"] == "finished", info["reason"]
    assert info["model"] == simulated(file, tmp_path / "plain")["model"]
    assert replayed(tmp_path / "run")
    was, now = RunFolder(tmp_path / "plain").metrics, RunFolder(tmp_path / "run").metrics
    for one, other in zip(was, now, strict=True):
        mine, theirs = ({name: value for name, value in of.items() if name.startswith(("personal/", "finetuned/"))} for of in (one, other))
        assert "personal/gain" in mine and mine == pytest.approx(theirs, abs=1e-9)
        assert ("finetuned/gain" in mine) == (one["round"] in (0, 3))


def test_test_samples_are_held_out_of_a_file_that_has_none(tmp_path: Path) -> None:
    """A fifth of each class; whoever shares the file has a part of them, and none is trained on."""
    x = np.arange(40.0).reshape(20, 2)
    np.savez(tmp_path / "xray.npz", x=x, y=np.arange(20) % 2)
    [loaded] = load(written(tmp_path, OWN % "shape: [2], labels: [0, 1]" + "strategy: fedavg\n"))
    server = own.of_server(loaded, {})
    assert server.apart and server.inputs.shape == (2, 2) and own.labels(server) == [0, 1]
    task = own.of_nodes(loaded, [([0, 1], tmp_path)], own.labels(server), server.apart)
    assert task.test_owner is not None and task.test_owner.tolist().count(-1) == 2
    assert sorted(task.test_owner.tolist()) == [-1, -1, 0, 0, 1, 1] and task.counts.tolist() == [8, 8, 1]
    judged = task.test_inputs[task.test_owner >= 0]
    assert {*map(tuple, judged.tolist())}.isdisjoint(map(tuple, task.inputs.tolist())) and len(task.inputs) == 16


def test_a_server_without_data_says_what_it_lacks(tmp_path: Path) -> None:
    def served(text: str) -> None:
        [loaded] = load(written(tmp_path, text + "strategy: fedavg\n"))
        Service(loaded, tmp_path / "run", ["127.0.0.1:0"], ServerIdentity.plain(), lambda said: None).build()

    with pytest.raises(SettingError, match=r"task.data: .*`task.partition.shape` and `labels` say what samples are like"):
        served((OWN % "").replace(", }", "}"))
    [loaded] = load(written(tmp_path, OWN % SERVED + "strategy: fedavg\nevaluate: {metrics: [accuracy, f1]}\n"))
    service = Service(loaded, tmp_path / "run", ["127.0.0.1:0"], ServerIdentity.plain(), lambda said: None)
    service.own = dict.fromkeys(range(3), (1, ""))
    with pytest.raises(SettingError, match=r"evaluate.metrics.1: `f1` needs test samples at the server"):
        service.build()


def test_answers_are_read_with_care_and_kept_in_the_journal() -> None:
    def answer(**head: Any) -> Any:
        return understood(Reply(jobs=[1], head=json.dumps(head).encode()), ["tests"], [3, 4])

    good = answer(nodes=[4, 3], sums={"tests": [[2, 0], [0.5, 0], [1, 0]]})
    assert good == Answer([4, 3], {"tests": [[2.0, 0.0], [0.5, 0.0], [1.0, 0.0]]})
    assert answer(error="no memory") == "no memory"
    for sums in ([[2, 0], [0.5, 0]], [[2], [0.5], [1]], [[-1, 0], [0, 0], [0, 0]]):
        assert answer(nodes=[4, 3], sums={"tests": sums}) == "its answer is not of the nodes that were asked"
    assert answer(nodes=[4, 5], sums={"tests": [[2, 0]] * 3}) == "its answer is not of the nodes that were asked"
    assert answer(nodes=[4, 3], sums={"personal": [[2, 0]] * 3}) == answer(nodes="x") == "its answer makes no sense"
    decision = Decision(7, None, asked=["tests"], answers=[good])
    again = parse(decision.line())
    assert again and again.asked == ["tests"] and again.answers == [good] and again.time is None
    assert torch.equal(table(["tests"], again.answers, 5, "cpu")["tests"][:, 4], torch.tensor([2, 0.5, 1], dtype=torch.float64))
    empty = parse(Decision(7, None, asked=["tests"]).line())
    assert empty and empty.asked == ["tests"] and not empty.answers
