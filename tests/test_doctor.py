"""`fedsim doctor` and `explain` against real little servers: the layer that fails is named, with cause and cure."""

import asyncio
import re
import ssl
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from launch import call
from trust import folders, listening, raw, server_of, serving, times, web, worker_of

from fedsim import __version__
from fedsim.transport.doctor import SESSION, examine
from fedsim.transport.hub import Hub
from fedsim.transport.identity import Claim, ServerIdentity, WorkerIdentity
from fedsim.transport.messages_pb2 import VERSION, Hello, Refusal, Welcome
from fedsim.transport.nodes import parse
from fedsim.transport.objects import Store
from fedsim.transport.outlet import Outlet
from fedsim.transport.probe import Finding, explain
from fedsim.transport.session import Session

PLAIN = WorkerIdentity(insecure=True)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders(tmp_path_factory.mktemp("pki"))


def seen(target: str, identity: WorkerIdentity) -> tuple[list[str], Finding]:
    """The layers that were tried, and what the last one showed."""
    found = list(examine(target, identity, patience=0.5))
    assert all(finding.good for finding in found[:-1])
    return [finding.layer for finding in found], found[-1]


def unreachable(target: str, identity: WorkerIdentity) -> str:
    """grpc fails there, which says nothing; what `explain` says."""
    with grpc.secure_channel(target, identity.credentials()) as channel, pytest.raises(grpc.RpcError) as failed:
        channel.stream_stream(SESSION)(iter([b""]), timeout=2).next()
    assert failed.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    return explain(target, identity, 0.5) or ""


# Below TLS


def test_no_such_name(pki: Path) -> None:
    tried, last = seen("nowhere.invalid:7400", PLAIN)
    assert tried == ["name"] and "nowhere.invalid can't be resolved" in last.said and "DNS" in last.cure


def test_nothing_listens() -> None:
    with listening(accepting=False) as target:
        tried, last = seen(target, PLAIN)
    assert tried == ["name", "tcp"] and last.said == f"nothing listens at {target}" and "fedsim serve" in last.cure


def test_a_port_that_says_nothing(pki: Path) -> None:
    with listening() as target:
        tried, last = seen(target, worker_of(pki / "good", pki / "good/ca.pem"))
        assert tried == ["name", "tcp", "tls"] and "says nothing" in last.said
        tried, last = seen(target, PLAIN)
        assert tried == ["name", "tcp", "http/2"] and "says nothing" in last.said


def test_a_web_server(pki: Path) -> None:
    with web() as target:
        tried, last = seen(target, worker_of(pki / "good", pki / "good/ca.pem"))
        assert tried == ["name", "tcp", "tls"] and "does not speak TLS" in last.said
        tried, last = seen(target, PLAIN)
        assert tried == ["name", "tcp", "http/2"] and "speaks HTTP/1" in last.said and "proxy" in last.cure


def test_a_web_server_with_the_right_certificate(pki: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / "good/server.pem", pki / "good/server.key")
    with web(lambda plain: context.wrap_socket(plain, server_side=True)) as target:
        tried, last = seen(target, worker_of(pki / "good", pki / "good/ca.pem"))
    assert tried == ["name", "tcp", "tls", "http/2"] and "no HTTP/2" in last.said


def test_plaintext_on_one_end_only(pki: Path) -> None:
    with serving(server_of(pki / "good")) as target:
        tried, last = seen(target, PLAIN)
        assert tried[-1] == "http/2" and not last.good and "--insecure" in last.cure
    with serving(ServerIdentity.plain()) as target:
        said = unreachable(target, worker_of(pki / "good", pki / "good/ca.pem"))
        assert said.startswith("tls: ") and "does not speak TLS" in said and "--insecure" in said


# TLS, as a worker sees it where grpc says "failed to connect to all addresses"


def test_a_server_by_another_ca(pki: Path) -> None:
    ca = pki / "good/ca.pem"
    with serving(server_of(pki / "other")) as target:
        said = unreachable(target, worker_of(pki / "good", ca))
    assert "the server's certificate `localhost` (by `fedsim CA " in said and f"is not certified by {ca} (`fedsim CA " in said
    assert "copy ca.pem" in said


def test_a_server_out_of_its_time(pki: Path) -> None:
    identity = worker_of(pki / "good", pki / "good/ca.pem")
    with serving(server_of(pki / "late")) as target:
        ended = f"the server's certificate `localhost` expired on {times(pki / 'late', 'server')[1]}; on the server, remove server.pem"
        assert ended in unreachable(target, identity)
    with serving(server_of(pki / "early")) as target:
        said = unreachable(target, identity)
    assert f"the server's certificate `localhost` is not valid before {times(pki / 'early', 'server')[0]}, and here it is 20" in said
    assert said.endswith("set this machine's clock right")


def test_a_server_of_another_name(pki: Path) -> None:
    with serving(server_of(pki / "named")) as target:
        identity = worker_of(pki / "good", pki / "good/ca.pem")
        assert "is for elsewhere.lan, 10.0.0.5, not for localhost; join by one of those names" in unreachable(target, identity)
        address = target.replace("localhost", "127.0.0.1")
        assert "is for elsewhere.lan, 10.0.0.5, not for 127.0.0.1" in unreachable(address, identity)


@pytest.mark.parametrize("which", ["other", "late", "early"])
def test_a_worker_that_the_server_does_not_take(pki: Path, which: str) -> None:
    with serving(server_of(pki / "good")) as target:
        said = unreachable(target, worker_of(pki / which, pki / "good/ca.pem"))
    assert (
        said.startswith("http/2: the server ends the connection")
        and f"it does not take {pki / which / 'a.pem'} (`a`, by `fedsim CA" in said
    )
    assert " to ".join(times(pki / which, "a")) in said and "fedsim certs --workers" in said


def test_a_servers_certificate_is_none_of_a_worker(pki: Path) -> None:
    with serving(server_of(pki / "good")) as target:
        assert "server.pem" in unreachable(target, worker_of(pki / "good", pki / "good/ca.pem", "server"))


def test_a_workers_certificate_is_none_of_the_server(pki: Path) -> None:
    with serving(ServerIdentity(raw(pki / "good", "a"), (pki / "good/ca.pem").read_bytes())) as target:
        said = unreachable(target, worker_of(pki / "good", pki / "good/ca.pem", "b"))
    assert "the server's certificate `a` is for a, not for localhost" in said


def test_files_that_changed_meanwhile(pki: Path, tmp_path: Path) -> None:
    identity = worker_of(pki / "good", pki / "good/ca.pem")
    assert identity.pair
    gone = replace(identity, pair=replace(identity.pair, key_file=tmp_path / "gone.key"))
    with serving(server_of(pki / "good")) as target:
        assert "a.pem or its key changed since it was read" in (explain(target, gone) or "")


def test_a_proxy_that_grpc_takes(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = worker_of(pki / "good", pki / "good/ca.pem")
    with serving(server_of(pki / "good")) as target, listening(accepting=False) as proxy:
        monkeypatch.setenv("https_proxy", f"http://me:secret@{proxy}")
        said = unreachable(target, identity)
        assert said.startswith(f"proxy: grpc goes through https_proxy=http://me:***@{proxy}, which is not tried here; no_proxy=localhost")
        monkeypatch.setenv("no_proxy", "example.org, localhost")
        assert explain(target, identity) is None and all(finding.good for finding in examine(target, identity))


def test_a_worker_without_a_certificate(pki: Path) -> None:
    with serving(server_of(pki / "good")) as target:
        said = unreachable(target, worker_of(pki / "good", pki / "good/ca.pem", None))
    assert "it may want a certificate, and none was shown; join with --certificates FOLDER" in said


# Above TLS


def test_another_grpc_server(pki: Path) -> None:
    with serving(server_of(pki / "good"), service=False) as target:
        identity = worker_of(pki / "good", pki / "good/ca.pem")
        tried, last = seen(target, identity)
        assert explain(target, identity) is None
    assert tried == ["name", "tcp", "tls", "http/2", "grpc", "fedsim"]
    assert not last.good and "no service fedsim.v1.Fedsim" in last.said and "another gRPC server" in last.cure


def test_a_right_server(pki: Path) -> None:
    with serving(server_of(pki / "good"), ahead=3600) as target:
        found = list(examine(target, worker_of(pki / "good", pki / "good/ca.pem"), 2))
    assert all(finding.good for finding in found)
    tls, _, calls, answer, clock = (finding.said for finding in found[2:])
    assert tls.startswith("TLSv1.3; localhost, 127.0.0.1, certified by `fedsim CA ") and tls.endswith(
        f"until {times(pki / 'good', 'server')[1]}"
    )
    assert re.fullmatch(r"its health is SERVING; \d\S* ms for a call, the best of 5", calls)
    assert (answer, clock) == ("welcome to run quickstart", "the server's is 1.0 h ahead; only the dates of certificates depend on it")


def test_no_token_and_a_wrong_one(pki: Path) -> None:
    server = ServerIdentity.folder(pki / "tokens")
    (pki / "wrong.token").write_text("x" * 40 + " a 0..49\n")
    (pki / "wrong.token").chmod(0o600)
    with serving(server) as target:
        tried, last = seen(target, worker_of(pki / "tokens", pki / "tokens/ca.pem", None))
        assert (tried[-1], last.good) == ("fedsim", False) and "by token, and none was sent" in last.said and "--token-file" in last.cure
        tried, last = seen(target, WorkerIdentity.folder(pki / "tokens", pki / "wrong.token"))
        assert (tried[-1], last.good) == ("fedsim", False) and "none of this server's" in last.said and "x" * 40 not in last.said
        tried, last = seen(target, WorkerIdentity.load(token_file=pki / "tokens/a.token"))
        assert last.good and tried[-2:] == ["fedsim", "clock"]


def test_another_version(pki: Path) -> None:
    def old(hello: object) -> Refusal | None:
        assert getattr(hello, "version", None) == __version__ and getattr(hello, "role", None) == "doctor"
        return Refusal(reason=VERSION, cause=f"fedsim {__version__} is not 9.9\x1b[2J", cure="install fedsim 9.9")

    with serving(ServerIdentity.plain(), old) as target:
        _, last = seen(target, PLAIN)
    assert last == Finding("fedsim", False, f"version: fedsim {__version__} is not 9.9\ufffd[2J", "install fedsim 9.9")


class Quickstart:
    """What a server decides of who knocks."""

    def welcome(self, hello: Hello, claim: Claim) -> Welcome | Refusal:
        assert (hello.role, hello.nodes, claim) == ("doctor", "", Claim("a", parse("0..49")))
        return Welcome(run="quickstart 3f9a1c")

    def admit(self, session: Session, facts: bytes) -> Refusal | None:
        raise AssertionError


def test_the_server_of_a_run(pki: Path, tmp_path: Path) -> None:
    server = ServerIdentity.folder(pki / "good")
    hub = Hub(Store(tmp_path), Quickstart(), listen=["127.0.0.1:0"], credentials=server.credentials(), identify=server.identify)
    [target] = hub.start()
    try:
        found = [*examine(target, WorkerIdentity.load(certificate=pki / "good/a.pem"))]
        assert not hub.desk.sessions and hub.events.empty()
    finally:
        hub.stop("the test is over", drained=True, grace=0)
    assert all(finding.good for finding in found)
    assert [finding.said.split(";")[0] for finding in found[-2:]] == ["welcome to run quickstart 3f9a1c", "the clocks agree"]


class Told:
    """A worker that only listens how its connection stands."""

    def __init__(self) -> None:
        self.said: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def state(self, text: str) -> None:
        if "next try" in text and not self.said.done():
            self.said.set_result(text)


def test_a_worker_says_why_it_gets_no_connection_and_ends_where_waiting_mends_nothing(pki: Path, tmp_path: Path) -> None:
    async def first_words(target: str, identity: WorkerIdentity, run: str) -> str:
        told, work = Told(), partial(explain, target, identity, ending=True)
        outlet = Outlet(
            target, Store(tmp_path), role="train", nodes="0", worker_id=bytes(16), credentials=identity.credentials(), explain=work
        )
        outlet.hello.run = run
        task = asyncio.create_task(outlet.run(cast(Any, told)))
        await asyncio.wait((task, told.said), timeout=10, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return str(task.exception())
        await outlet.drain("enough")
        assert await task == "enough"
        return told.said.result()

    ca = pki / "good/ca.pem"
    with serving(server_of(pki / "other")) as target:
        stranger, known = (asyncio.run(first_words(target, worker_of(pki / "good", ca), run)) for run in ("", "quickstart 3f9a1c"))
    why = f"{target}: tls: the server's certificate `localhost`"
    assert stranger.startswith(why) and f"is not certified by {ca}" in stranger
    assert known.startswith(f"no connection to {target}: {why}") and known.endswith(" s")
    with listening(False) as target:
        assert "nothing listens" in asyncio.run(first_words(target, worker_of(pki / "good", ca), ""))


# The command


def test_the_command_prints_a_line_a_layer(pki: Path) -> None:
    with serving(server_of(pki / "good")) as target:
        shown = call("doctor", target, "--certificate", str(pki / "good/a.pem"))
        assert shown.exit_code == 0 and [line.split()[:2] for line in shown.stdout.splitlines()] == [
            ["ok", layer] for layer in ("name", "tcp", "tls", "http/2", "grpc", "fedsim", "clock")
        ]
        shown = call("doctor", target, "--certificate", str(pki / "other/a.pem"))
        assert shown.exit_code == 1 and [line.split()[0] for line in shown.stdout.splitlines()] == ["ok", "ok", "failed", "copy"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "nonsense: HOST:PORT is due"),
        (["http://localhost:1"], "an address has no scheme"),
        (["localhost:70000", "--insecure"], "HOST:PORT is due"),
        (["::1:7400", "--insecure"], "HOST:PORT is due"),
        (["localhost:1"], "holds neither NAME.pem nor NAME.token"),
        (["10.0.0.5:7400", "--insecure"], "joining at 10.0.0.5:7400 in plaintext"),
        (["localhost:1", "--insecure-beyond-loopback"], "goes with --insecure"),
        (["localhost:1", "--insecure", "--token-file", "t"], "t: goes with TLS"),
        (["localhost:1", "--certificate", "a.pem"], "ca.pem: no such file"),
    ],
)
def test_what_the_command_refuses(folder: Path, words: list[str], said: str) -> None:
    shown = call("doctor", *words, *(["--insecure"] if words == ["nonsense"] or "http" in words[0] else []))
    assert shown.exit_code == 2 and said in shown.stderr and len(shown.stderr.splitlines()) == 1
