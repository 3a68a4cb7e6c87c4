"""Who is who: certificates and tokens that are good, and what is said of each that is not; both ends on loopback."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from trust import folders, serving, times, worker_of

from fedsim.base.errors import FedsimError
from fedsim.transport.identity import Claim, ServerIdentity, WorkerIdentity, read_tokens
from fedsim.transport.messages_pb2 import CERTIFICATE, TOKEN, FromServer, FromWorker, Hello, Refusal
from fedsim.transport.nodes import Nodes, parse


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders(tmp_path_factory.mktemp("pki"))


def nodes(text: str) -> Nodes:
    found = parse(text)
    assert found is not None
    return found


# Nodes


@pytest.mark.parametrize(
    ("text", "written", "count"),
    [
        ("0..99", "0..99", 100),
        ("7,3,5", "3,5,7", 3),
        ("4..4", "4", 1),
        ("0..3,2..5,6", "0..6", 7),
        ("0..9999999", "0..9999999", 10_000_000),
    ],
)
def test_nodes_are_read_and_written(text: str, written: str, count: int) -> None:
    found = nodes(text)
    assert str(found) == written and len(found) == count and parse(written) == found
    assert 0 in nodes("0..3") and 4 not in nodes("0..3") and [*nodes("7,3..4")] == [3, 4, 7]


def test_a_word_stands_for_no_nodes_in_particular() -> None:
    assert parse("auto") is None and parse("all", "all") is None


def test_nodes_without_others() -> None:
    assert str(nodes("0..9").without(nodes("2..3,9"))) == "0..1,4..8"
    assert not nodes("2..5").without(nodes("0..9")) and nodes("0..3").without(nodes("7")) == nodes("0..3")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0-4", "`0-4`: a node, a range such as `0..99`"),
        ("", "``: a node"),
        ("1,,2", "``: a node"),
        ("010", "`010`"),
        ("-1", "`-1`"),
        ("٣", "a node, a range"),
        ("all", "or `auto` is due"),
        ("9..5", "`9..5` runs backwards; `5..9` is due"),
        ("0..10000000", "the highest number of a node is 9999999"),
        ("0..99999999999", "a range such as"),
        ("1," * 40_000 + "1", "80,001 characters; at most 65,536"),
    ],
)
def test_nodes_that_make_no_sense(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        parse(text)
    assert len(str(error.value)) < 200


# Who a worker is, told by a real connection


def claims(target: str, identity: WorkerIdentity, metadata: tuple[tuple[str, str], ...] = ()) -> FromServer:
    credentials = identity.credentials()
    with grpc.secure_channel(target, credentials) if credentials else grpc.insecure_channel(target) as channel:
        call = channel.stream_stream("/fedsim.v1.Fedsim/Session", FromWorker.SerializeToString, FromServer.FromString)
        answer: FromServer = next(call(iter([FromWorker(hello=Hello())]), metadata=metadata or identity.metadata(), timeout=3))
        return answer


def test_a_certificate_tells_name_and_nodes(pki: Path) -> None:
    known: list[Claim | Refusal] = []
    with serving(ServerIdentity.folder(pki / "good"), known=known) as target:
        for name in ("a", "b"):
            claims(target, WorkerIdentity.load(certificate=pki / f"good/{name}.pem"))
    assert known == [Claim("a", nodes("0..49")), Claim("b", None)]


def test_a_certificate_for_no_nodes(pki: Path, tmp_path: Path) -> None:
    key, file, ca = tmp_path / "odd.key", tmp_path / "odd.pem", pki / "good"
    make = (
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {key} -out {file} -CA {ca}/ca.pem -CAkey {ca}/ca.key"
    )
    for lease, said in (
        (None, "is for no nodes, so it is none of a worker"),
        ("fedsim:nodes:9..1", "can't be read: `9..1` runs backwards"),
    ):
        names = f"subjectAltName=DNS:odd{f',URI:{lease}' if lease else ''}"
        subprocess.run([*make.split(), "-subj", "/CN=odd", "-days", "2", "-addext", names], check=True, capture_output=True)
        with serving(ServerIdentity.folder(pki / "good")) as target:
            refusal = claims(target, WorkerIdentity.load(ca / "ca.pem", file)).refusal
        assert refusal.reason == CERTIFICATE and said in refusal.cause and "`odd`" in refusal.cause and "fedsim certs" in refusal.cure


def test_tokens(pki: Path) -> None:
    known: list[Claim | Refusal] = []
    anonymous = worker_of(pki / "tokens", pki / "tokens/ca.pem", None)
    with serving(ServerIdentity.folder(pki / "tokens"), known=known) as target:
        assert not claims(target, WorkerIdentity.folder(pki / "tokens")).HasField("refusal")
        assert known == [Claim("a", nodes("0..49"), by_token=True)]
        assert claims(target, anonymous).refusal.cause == "this server lets workers in by token, and none was sent"
        wrong = claims(target, anonymous, (("fedsim-token", "x" * 43),)).refusal
    assert wrong.reason == TOKEN and wrong.cause == "the token that was sent is none of this server's" and "--token-file" in wrong.cure


def test_everybody_is_let_in_where_that_was_asked_for() -> None:
    known: list[Claim | Refusal] = []
    with serving(ServerIdentity.plain(), known=known) as target:
        assert not claims(target, WorkerIdentity.load(insecure=True)).HasField("refusal")
    assert known == [Claim("", None)]


def test_nodes_beyond_the_certificate() -> None:
    claim = Claim("a", nodes("0..49"))
    assert claim.refuses(nodes("3,49")) is None and Claim("b").refuses(nodes("0..9999999")) is None
    no = claim.refuses(nodes("40..59"))
    assert no is not None and (no.reason, no.cause) == (CERTIFICATE, "the certificate of `a` is for nodes 0..49, not for 50..59")
    assert no.cure == "join with --nodes 0..49, or make a certificate for 40..59 with `fedsim certs`"
    token = Claim("a", nodes("0"), by_token=True).refuses(nodes("1"))
    assert token is not None and token.reason == TOKEN and "the token of `a`" in token.cause


# Plaintext


@pytest.mark.parametrize("place", ["localhost:7400", "127.0.0.1:7400", "127.1.2.3:1", "[::1]:7400"])
def test_plaintext_stays_on_this_machine(place: str) -> None:
    ServerIdentity.plain().check(place)
    WorkerIdentity.load(insecure=True).check(place)


@pytest.mark.parametrize("place", ["0.0.0.0:7400", "[::]:7400", "server.lan:7400", "10.0.0.5:7400", "localhost.lan:7400"])
def test_plaintext_beyond_this_machine_is_asked_for_twice(pki: Path, place: str) -> None:
    for one in (ServerIdentity.plain(), WorkerIdentity.load(insecure=True)):
        with pytest.raises(FedsimError, match=r"in plaintext lets everybody on the way .* --insecure-beyond-loopback"):
            one.check(place)
    ServerIdentity.plain(exposed=True).check(place)
    WorkerIdentity.load(insecure=True, exposed=True).check(place)
    ServerIdentity.folder(pki / "good").check(place)
    WorkerIdentity.load(certificate=pki / "good/a.pem").check(place)


# Files


def refused(load: Callable[[], object]) -> str:
    with pytest.raises(FedsimError) as error:
        load()
    assert "\n" not in str(error.value)
    return str(error.value)


def copied(pki: Path, into: Path, which: str = "good") -> Path:
    for file in (pki / which).iterdir():
        (into / file.name).write_bytes(file.read_bytes())
        (into / file.name).chmod(file.stat().st_mode & 0o777)
    return into


def test_a_key_that_others_may_read(pki: Path, tmp_path: Path) -> None:
    good = copied(pki, tmp_path)
    for mode, shown in ((0o644, "-rw-r--r--"), (0o604, "-rw----r--"), (0o660, "-rw-rw----")):
        (good / "server.key").chmod(mode)
        said = refused(lambda: ServerIdentity.folder(good))
        assert said == f"{good}/server.key: others may read this secret ({shown}); its owner alone should: chmod 600 {good}/server.key"
    (good / "a.key").chmod(0o644)
    assert "a.key: others may read" in refused(lambda: WorkerIdentity.load(certificate=good / "a.pem"))
    token = copied(pki, tmp_path, "tokens") / "a.token"
    token.chmod(0o644)
    assert "a.token: others may read" in refused(lambda: WorkerIdentity.load(token_file=token))
    (good / "tokens").chmod(0o644)
    (good / "server.key").chmod(0o600)
    assert "tokens: others may read" in refused(lambda: ServerIdentity.folder(good))


def spoil_missing(folder: Path) -> str:
    (folder / "server.pem").unlink()
    return "server.pem: no such file; `fedsim certs` makes it"


def spoil_folder(folder: Path) -> str:
    (folder / "server.pem").unlink()
    (folder / "server.pem").mkdir()
    return "server.pem: can't be read: Is a directory"


def spoil_no_pem(folder: Path) -> str:
    (folder / "server.pem").write_bytes(b"\x00\xffrubbish")
    return "server.pem: holds no certificate in PEM form"


def spoil_key_for_certificate(folder: Path) -> str:
    (folder / "server.pem").write_bytes((folder / "server.key").read_bytes())
    return "server.pem: holds a private key; a certificate is due"


def spoil_certificate_for_key(folder: Path) -> str:
    (folder / "server.key").write_bytes((folder / "server.pem").read_bytes())
    return "server.key: holds no private key in PEM form"


def spoil_other_key(folder: Path) -> str:
    (folder / "server.key").write_bytes((folder / "a.key").read_bytes())
    return "server.key: is not the key of "


def spoil_passphrase(folder: Path) -> str:
    key = folder / "server.key"
    subprocess.run(["openssl", "ec", "-in", key, "-out", key, "-aes128", "-passout", "pass:four"], check=True, capture_output=True)
    return "server.key: the key has a passphrase"


def spoil_ca(folder: Path) -> str:
    (folder / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return "ca.pem: holds no certificate in PEM form"


def spoil_large(folder: Path) -> str:
    os.truncate(folder / "ca.pem", 2 << 20)
    return "ca.pem: more than 1 MiB"


def spoil_no_token(folder: Path) -> str:
    (folder / "tokens").touch(0o600)
    return "tokens: holds no token"


@pytest.mark.parametrize(
    "spoil", [each for name, each in sorted(globals().items()) if name.startswith("spoil_")], ids=lambda spoil: spoil.__name__
)
def test_a_file_that_is_no_good(pki: Path, tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    said = spoil(copied(pki, tmp_path))
    assert refused(lambda: ServerIdentity.folder(tmp_path)).startswith(f"{tmp_path}/{said}")


def test_certificates_out_of_their_time(pki: Path) -> None:
    late, early = pki / "late/a.pem", pki / "early/a.pem"
    said = refused(lambda: WorkerIdentity.load(certificate=late))
    assert said.startswith(f"{late}: `a` expired on {times(pki / 'late', 'a')[1]}; remove it with its key and make another")
    said = refused(lambda: WorkerIdentity.load(certificate=early))
    assert said.startswith(f"{early}: `a` is not valid before {times(pki / 'early', 'a')[0]}, and here it is 20") and said.endswith(
        "the clock right"
    )
    assert f"{pki}/late/server.pem: `localhost` expired on" in refused(lambda: ServerIdentity.folder(pki / "late"))


def test_files_of_two_folders(pki: Path) -> None:
    file, ca = pki / "other/a.pem", pki / "good/ca.pem"
    said = f"{file}: the CA in {ca} did not sign `a`; take both from one folder of `fedsim certs`"
    assert refused(lambda: WorkerIdentity.load(ca, file)) == said
    mixed = refused(lambda: ServerIdentity.load(pki / "other/server.pem", pki / "other/server.key", ca))
    assert mixed == f"{pki}/other/server.pem: the CA in {ca} did not sign `localhost`; take both from one folder of `fedsim certs`"


def test_a_chain_up_to_the_ca(pki: Path, tmp_path: Path) -> None:
    """A CA between ours and the server's certificate, as companies have it."""

    def run(text: str) -> None:
        subprocess.run(text.split(), check=True, capture_output=True)

    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    run(f"{new} -keyout {tmp_path}/root.key -out {tmp_path}/root.pem -subj /CN=root")
    run(f"{new} -keyout {tmp_path}/mid.key -out {tmp_path}/mid.pem -subj /CN=mid -CA {tmp_path}/root.pem -CAkey {tmp_path}/root.key")
    leaf = f"{new} -keyout {tmp_path}/s.key -out {tmp_path}/s.pem -subj /CN=s -CA {tmp_path}/mid.pem -CAkey {tmp_path}/mid.key"
    run(f"{leaf} -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:localhost")
    whole = tmp_path / "server.pem"
    whole.write_text((tmp_path / "s.pem").read_text() + (tmp_path / "mid.pem").read_text())
    ServerIdentity.load(whole, tmp_path / "s.key", tmp_path / "root.pem")
    assert "did not sign" in refused(lambda: ServerIdentity.load(tmp_path / "s.pem", tmp_path / "s.key", tmp_path / "root.pem"))


def test_what_a_worker_must_say(pki: Path, tmp_path: Path) -> None:
    assert "--certificate FILE or --token-file FILE" in refused(WorkerIdentity.load)
    assert "goes with TLS" in refused(lambda: WorkerIdentity.load(token_file=pki / "tokens/a.token", insecure=True))
    assert "is for several workers (a, b); choose with --certificate" in refused(lambda: WorkerIdentity.folder(pki / "good"))
    assert "holds neither NAME.pem nor NAME.token" in refused(lambda: WorkerIdentity.folder(tmp_path))
    assert "nobody could join" in refused(lambda: ServerIdentity.load(pki / "good/server.pem", pki / "good/server.key", None))
    (copied(pki, tmp_path) / "b.pem").unlink()
    assert WorkerIdentity.folder(tmp_path) == WorkerIdentity.load(certificate=tmp_path / "a.pem")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x" * 20 + " a", "t:1: 2 words; `TOKEN NAME NODES` are due"),
        ("\n# none\nshort a 0\n", "t:3: the token of `a` must be 20 to 200 letters"),
        ("x" * 20 + " a 9..1", "t:1: `9..1` runs backwards"),
        ("x" * 20 + " a 0\n" + "x" * 20 + " b 1\n", "t:2: the tokens of `a` and `b` are the same"),
        ("\xff\xfe", "t:1: 1 words"),
    ],
)
def test_token_files_that_make_no_sense(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "t"
    file.touch(0o600)
    file.write_text(text, "latin-1")
    found = refused(lambda: read_tokens(file))
    assert found.startswith(f"{tmp_path}/{said}") and "x" * 20 not in found


def test_a_worker_has_its_own_token_alone_and_nothing_shows_it(pki: Path, tmp_path: Path) -> None:
    two = tmp_path / "t"
    two.touch(0o600)
    two.write_text("x" * 20 + " a 0\n" + "y" * 20 + " b 1 # the other\n")
    assert "holds 2 tokens; a worker's file has its own line only" in refused(lambda: WorkerIdentity.load(token_file=two))
    secret = (pki / "tokens/a.token").read_text().split()[0]
    shown = repr(WorkerIdentity.folder(pki / "tokens")) + repr(ServerIdentity.folder(pki / "tokens"))
    assert secret not in shown and "PRIVATE KEY" not in shown
