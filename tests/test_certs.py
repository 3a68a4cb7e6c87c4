"""`fedsim certs`: the files, their modes, what a later call keeps, and what it refuses."""

import os
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import pytest
from cryptography import x509
from launch import call
from trust import times

from fedsim.transport import pem
from fedsim.transport.identity import ServerIdentity, WorkerIdentity

FIRST = ("certs", "--server", "server.lan", "--server", "10.0.0.5", "--workers", "a=0..49,b=50..98,99,c")


def mode(file: Path) -> str:
    return stat.filemode(file.stat().st_mode)


def shown(*words: str) -> str:
    done = call(*words)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*words: str) -> str:
    done = call(*words)
    assert done.exit_code == 2 and not done.stdout and len(done.stderr.splitlines()) == 1, done.output
    return done.stderr.strip()


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_folder_for_three_machines(folder: Path) -> None:
    lines = shown(*FIRST).splitlines()
    assert lines[0].startswith("certs: made ca.key, ca.pem, server.key, server.pem, a.key")
    assert [line.split("  ")[1:] for line in lines[1:3]] == [
        ["copy to the server", "ca.pem server.pem server.key"],
        ["copy to a", "", "", "", "", " ca.pem a.pem a.key", "(nodes 0..49)"],
    ]
    assert "(nodes 50..99)" in lines[3] and "(nodes all)" in lines[4] and "ca.key" in lines[5]
    assert {mode(file) for file in Path("certs").glob("*.key")} == {"-rw-------"} and mode(Path("certs")) == "drwx------"
    ServerIdentity.folder(Path("certs"))
    WorkerIdentity.load(certificate=Path("certs/b.pem"))


def test_what_stands_in_the_certificates(folder: Path) -> None:
    shown(*FIRST, "--days", "30")
    server, worker, ca = (x509.load_pem_x509_certificate(Path(f"certs/{name}.pem").read_bytes()) for name in ("server", "a", "ca"))
    assert (pem.names(server), pem.leases(server)) == (["server.lan", "10.0.0.5"], [])
    assert (pem.name(worker), pem.names(worker), pem.leases(worker)) == ("`a`", ["a"], ["0..49"])
    uses = {one: one.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value for one in (server, worker)}
    assert x509.ExtendedKeyUsageOID.CLIENT_AUTH not in uses[server] and x509.ExtendedKeyUsageOID.CLIENT_AUTH in uses[worker]
    now = datetime.now(UTC)
    assert timedelta(days=29) < server.not_valid_after_utc - now < timedelta(days=31) < timedelta(days=3640) < ca.not_valid_after_utc - now
    assert server.not_valid_before_utc < now - timedelta(hours=1)  # clocks may differ by an hour
    strict = ssl.create_default_context(cafile="certs/ca.pem")
    strict.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    strict.load_cert_chain("certs/server.pem", "certs/server.key")


def test_keys_are_private_from_their_first_byte(folder: Path) -> None:
    made: list[tuple[str, int]] = []
    opening = os.open

    def opened(path: str, flags: int, rights: int = 0o777, **more: int) -> int:
        number = opening(path, flags, rights, **more)
        if flags & os.O_CREAT:
            made.append((Path(path).name, os.fstat(number).st_mode & 0o777))
            assert flags & os.O_EXCL
        return number

    old = os.umask(0)
    try:
        with patch("os.open", opened):
            shown(*FIRST)
            shown("certs", "--server", "s", "--workers", "a", "--tokens", "-o", "other")
    finally:
        os.umask(old)
    secret = {"ca.key", "server.key", "a.key", "b.key", "c.key", "a.token", "tokens"}
    assert {name for name, rights in made if rights == 0o600} == secret and {name for name, _ in made} > secret


def test_workers_may_come_later_and_nothing_is_made_anew(folder: Path) -> None:
    shown(*FIRST)
    before = contents(Path("certs"))
    lines = shown("certs", "--workers", "d=100..149").splitlines()
    assert lines[0] == "certs: made d.key, d.pem" and lines[1].startswith("  copy to d ") and len(lines) == 3
    after = contents(Path("certs"))
    assert {name: after[name] for name in before} == before and {*after} - {*before} == {"d.key", "d.pem"}
    WorkerIdentity.load(certificate=Path("certs/d.pem"))
    assert shown(*FIRST).startswith("certs: nothing to make, all is there\n") and contents(Path("certs")) == after


def test_what_is_there_is_never_overwritten(folder: Path) -> None:
    shown(*FIRST)
    before = contents(Path("certs"))
    assert refused("certs", "--workers", "a=0..59") == (
        "certs/a.pem: is for nodes 0..49, not for 0..59; remove a.pem and a.key first, for nothing is overwritten"
    )
    assert refused("certs", "--server", "server.lan", "--server", "second.lan").startswith(
        "certs/server.pem: is for server.lan, 10.0.0.5, not for second.lan; remove server.pem"
    )
    Path("certs/a.key").unlink()
    assert refused("certs", "--workers", "a=0..49") == "certs/a.pem: is there without a.key; bring that back, or remove a.pem"
    Path("certs/ca.key").unlink()
    assert refused("certs", "--workers", "d") == "certs/ca.pem: is there without ca.key; bring that back, or remove ca.pem"
    assert contents(Path("certs")) == {name: text for name, text in before.items() if name not in ("a.key", "ca.key")}


def test_what_expired_is_named(folder: Path) -> None:
    with patch("fedsim.transport.authority.EARLIER", timedelta(days=10)), patch("fedsim.transport.authority.CA_DAYS", 1000):
        shown("certs", "--server", "s", "--workers", "a")
        Path("certs/a.pem").unlink(), Path("certs/a.key").unlink()
        from fedsim.transport.authority import issue, parse_workers

        issue(Path("certs"), [], parse_workers("a"), days=-3)
    said = refused("certs", "--workers", "a")
    assert (
        said == f"certs/a.pem: `a` expired on {times(Path('certs'), 'a')[1]}; remove it with its key and make another with `fedsim certs`"
    )


def test_tokens(folder: Path) -> None:
    text = shown("certs", "--server", "server.lan", "--workers", "a=0..49,b", "--tokens")
    assert "copy to the server  ca.pem server.pem server.key tokens\n" in text and "ca.pem a.token  (nodes 0..49)\n" in text
    assert {mode(Path("certs") / name) for name in ("tokens", "a.token", "b.token")} == {"-rw-------"}
    lines = Path("certs/tokens").read_text().splitlines()
    assert [line.split()[1:] for line in lines] == [["a", "0..49"], ["b", "all"]] and len(lines[0].split()[0]) == 43
    assert Path("certs/a.token").read_text().splitlines() == lines[:1]
    shown("certs", "--workers", "c=5", "--tokens")
    assert Path("certs/tokens").read_text().splitlines()[:2] == lines
    assert "`a` is for nodes 0..49; remove its line" in refused("certs", "--workers", "a=1", "--tokens")
    assert "its workers have tokens" in refused("certs", "--workers", "d")
    assert [token.name for token in ServerIdentity.folder(Path("certs")).tokens] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "certs: has no server.pem yet; say by which names workers reach the server: --server server.lan"),
        (
            ["--server", "server.lan:7400"],
            "--server server.lan:7400: a name such as server.lan, or an address such as 10.0.0.5, is due, without a port",
        ),
        (["--server", "ä.lan"], "--server ä.lan: a name such as"),
        (["--server", "s", "--workers", "../a"], "--workers ../a: `../a`: a worker's name starts with a letter"),
        (["--server", "s", "--workers", "ca=0"], "`ca`: a worker's name"),
        (["--server", "s", "--workers", "a=0,A=1"], "worker `A` twice"),
        (["--server", "s", "--workers", "a=0-4"], "`0-4`: a node, a range such as `0..99`"),
        (["--server", "s", "--workers", "a="], "``: a node"),
        (["--server", "edge", "--workers", "Edge=0"], "can't be the name of the server and of a worker"),
        (["--server", "s", "-o", "file/certs"], "file/certs: can't be made: Not a directory"),
    ],
)
def test_what_is_refused_makes_no_certificates(folder: Path, words: list[str], said: str) -> None:
    Path("file").touch()
    assert said in refused("certs", *words)
    assert [file for file in folder.rglob("*.pem") if file.stem != "ca"] == []


def test_options_out_of_range(folder: Path) -> None:
    done = call("certs", "--server", "s", "--days", "0")
    assert done.exit_code == 2 and "--days" in done.stderr and not Path("certs").exists()
