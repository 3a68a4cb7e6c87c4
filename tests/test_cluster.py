"""The engine `ray`: the same bits as in this process, however many actors there are, and whoever of them is killed."""

import importlib.util
import json
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launch import TASKS, resumed, same, simulate, write
from test_resume import KINDS
from tools import classification

from fedsim.base.errors import SettingError
from fedsim.engines import shares, troupe
from fedsim.engines.cluster import RayEngine
from fedsim.engines.troupe import Paths, Troupe
from fedsim.federation.spread import Spread
from fedsim.federation.work import Work
from fedsim.run.building import assemble
from fedsim.scenario import load
from fedsim.schedule import Gossip
from strategies.dsgd import Dsgd
from strategies.fedavg import FedAvg

absent = importlib.util.find_spec("ray") is None
pytestmark = pytest.mark.skipif(absent, reason="Ray is not installed")


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """An own instance of Ray, which ends with the tests."""
    yield
    import ray

    ray.shutdown()
    Troupe.idle.clear()


@pytest.fixture
def three(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three actors, whatever the machine has."""
    monkeypatch.setattr(troupe, "cores", lambda: 3)


def on(actors: int, more: str = "") -> str:
    return f"engine={{name: ray, actors: {actors}, address: local, plan: looped{more}}}"


MEMORY = ("strategy=fedspeed", "schedule={name: rounds, cohort: 5}", "uplink={name: ef21, inner: {name: topk, fraction: 5 %}}")
METHODS = {
    "rounds": (KINDS["rounds"], (1, 2, 3)),
    "buffered": (KINDS["buffered"], (3,)),
    "gossip": (KINDS["gossip"], (2,)),
    "error feedback buffered": (KINDS["error feedback buffered"], (1, 2)),
    "crashes": (KINDS["changes both ways"], (2,)),
    "memories": (MEMORY, (1, 2, 3)),
    "moments": (KINDS["moments"], (2,)),
}


@pytest.mark.parametrize("method", [pytest.param(one, marks=pytest.mark.slow if one == "moments" else ()) for one in METHODS])
def test_actors_change_no_bit(method: str, folder: Path, three: None) -> None:
    settings, counts = METHODS[method]
    expected = simulate(folder, *settings, "engine.plan=looped")
    for actors in counts:
        same(expected, simulate(folder, *settings, on(actors), into=f"{actors}"))


def killing(monkeypatch: pytest.MonkeyPatch, *when: tuple[int, int]) -> list[int]:
    """SIGKILL at the given calls of `work` for the actors of these places, with the block in flight; who was killed."""
    call, pids, killed, count = Troupe.call, dict[int, int](), list[int](), [0]

    def called(self: Troupe, place: int, method: str, *words: Any) -> Any:
        if method == "begin":
            pids[place] = self.get(call(self, place, "hello"))[2]
        answer = call(self, place, method, *words)
        if method == "work":
            count[0] += 1
            for which in [which for at, which in when if at == count[0]]:
                os.kill(pids[which], signal.SIGKILL)
                killed.append(pids[which])
        return answer

    monkeypatch.setattr(Troupe, "call", called)
    return killed


KILLS = {
    "no memories": (KINDS["buffered"], 2, ((5, 1),)),
    "replies on their way": (KINDS["error feedback buffered"], 2, ((13, 1),)),
    "the only one": (MEMORY, 1, ((5, 0),)),
}


@pytest.mark.parametrize("method", KILLS)
def test_an_actor_that_is_killed_changes_no_bit(method: str, folder: Path, three: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "LONG", 3)  # so that copies are made, and what is repeated begins with one
    settings, actors, when = KILLS[method]
    expected = simulate(folder, *settings, "engine.plan=looped", "stop.rounds=7")
    killed = killing(monkeypatch, *when)
    same(expected, simulate(folder, *settings, on(actors), "stop.rounds=7", into="killed"))
    assert len(killed) == len(when)


@pytest.mark.parametrize("method", ["error feedback buffered", "memories"])
def test_resumed_by_another_number_of_actors_and_by_none(method: str, folder: Path, three: None) -> None:
    settings = (*METHODS[method][0], "evaluate.every=2 rounds")
    expected = simulate(folder, *settings, "engine.plan=looped", "stop.rounds=9", into="whole")
    run = simulate(folder, *settings, on(2), "stop.rounds=3").path
    for engine, end in ((on(3), 6), ("engine={name: local, plan: looped}", 7), (on(1), 9)):
        last = resumed(run, engine, f"stop.rounds={end}")
    same(expected, last)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"actors": 2}, "engine.actors: 2 actors, and this machine has 1 cores"),
        ({"address": "127.0.0.1:9"}, "engine.address: no Ray answers at 127.0.0.1:9 .*; on the head, `ray start --head --port 9`"),
        ({"address": "somewhere"}, "engine.address: 'somewhere': HOST:PORT of a Ray head is due"),
        ({"actors": 1, "gpus": 0.5}, "engine.gpus: 1 actors with 0.5 GPUs each, and this machine has 0"),
    ],
)
def test_what_can_t_be_is_refused(settings: dict[str, Any], words: str, cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(troupe, "cores", lambda: 1)
    with pytest.raises(SettingError, match=words):
        RayEngine(**settings).start(classification([3, 4]), FedAvg(), 0)


PIPES: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
JOIN = """
import sys
from fedsim.base.errors import SettingError
from fedsim.engines.troupe import check, join
for line in sys.stdin:
    try:
        join(check(1, 1, 0, line.strip()), 1, 1, 0)
        print("joined", flush=True)
    except SettingError as error:
        print(error, flush=True)
"""


def test_a_cluster_of_another_version_is_refused(three: None) -> None:
    troupe.join("", 1, 1, 0)
    import ray
    from ray._raylet import GcsClient

    address = ray.get_runtime_context().gcs_address
    head, key, space = GcsClient(address=address), b"CLUSTER_METADATA", b"cluster"
    facts = json.loads(head.internal_kv_get(key, namespace=space))
    shown = {"ray_version": "Ray 2.40.0, Python", "python_version": f"Ray {ray.__version__}, Python 2.40.0"}
    with socket.create_server(("127.0.0.1", 0)) as mute, subprocess.Popen([sys.executable, "-c", JOIN], **PIPES) as other:

        def said(where: str) -> str:
            other.stdin.write(where + "\n")
            other.stdin.flush()
            return str(other.stdout.readline().strip())

        nobody = f"127.0.0.1:{mute.getsockname()[1]}"  # it takes connections and never says a word
        assert said(nobody).startswith(f"engine.address: no Ray answers at {nobody} (what listens there does not speak gRPC); on the head,")
        for name, theirs in shown.items():
            head.internal_kv_put(key, json.dumps(facts | {name: "2.40.0"}).encode(), True, space)
            words = said(address)
            assert words.startswith(f"engine.address: the head at {address} has {theirs}"), words
            assert words.endswith(
                f"this process Ray {ray.__version__}, Python {platform.python_version()}; they must be the same everywhere"
            )
        head.internal_kv_put(key, json.dumps(facts).encode(), True, space)
        assert said(address) == "joined"
        other.stdin.close()
        assert other.wait(30) == 0


def test_without_ray_the_cure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingError, match=r"engine.name: `ray` needs Ray, .* not installed here: pip install 'fedsim-flower\[ray\]'"):
        RayEngine().start(classification([3, 4]), FedAvg(), 0)


def test_peers_that_are_more_than_the_memory_are_refused(three: None) -> None:
    engine = RayEngine(address="local", memory=20_000, plan="looped")
    worker = engine.start(classification([2] * 300), Dsgd(schedule=Gossip()), 0)
    words = "engine.memory: 20.0 kB, and the models of 300 peers, which are mixed in this process, take 25.2 kB"
    with pytest.raises(SettingError, match=words):
        Spread(worker, None, None, True)


def test_deployments_have_engines_of_their_own(folder: Path, three: None) -> None:
    [loaded] = load(write(folder), [on(1)])
    with pytest.raises(SettingError, match=r"engine.name: `ray` computes simulations"):
        assemble(loaded, TASKS.get(loaded), field=Work)


def test_actors_look_for_modules_nowhere_that_ray_adds() -> None:
    paths = Paths(["/house"])
    paths.extend(["/working/folder", "/scripts"])
    assert paths == ["/house"]
