"""A small CA for one federation: the files in a folder that prove to each machine who the others are, and that are never overwritten."""

import ipaddress
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.base.errors import FedsimError
from fedsim.transport import pem
from fedsim.transport.identity import ANY, Token, read_tokens
from fedsim.transport.nodes import Nodes, parse

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509.oid import ObjectIdentifier

CA_DAYS = 3650
EARLIER = timedelta(days=1)  # clocks differ: what is made now holds since yesterday
_WORKER = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}")
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")
_FILES = ("ca", "server", "tokens")


@dataclass(frozen=True)
class Worker:
    """A machine by its name, and the nodes it may host; None: any."""

    name: str
    nodes: Nodes | None

    @property
    def written(self) -> str:
        return ANY if self.nodes is None else str(self.nodes)


def parse_workers(text: str) -> list[Worker]:
    """Of `a=0..49,b=50..99`, or `a,b` for any nodes; `a=3,5,b=7` goes on with a's nodes until the next name. Raises ValueError."""
    found: dict[str, list[str]] = {}
    for item in text.split(","):
        name, equals, nodes = (word.strip() for word in item.partition("="))
        if not equals and found and name[:1].isdigit():
            [*found.values()][-1].append(name)
            continue
        if not _WORKER.fullmatch(name) or name.lower() in _FILES:
            raise ValueError(
                f"`{name}`: a worker's name starts with a letter, has letters, digits, `.`, `_` or `-`, and is not {', '.join(_FILES)}"
            )
        if name.lower() in map(str.lower, found):
            raise ValueError(f"worker `{name}` twice")
        found[name] = [nodes] if equals else []
    return [Worker(name, parse(",".join(nodes), ANY) if nodes else None) for name, nodes in found.items()]


def issue(folder: Path, servers: Sequence[str], workers: Sequence[Worker], days: int = 365, tokens: bool = False) -> list[Path]:
    """The files that are new in the folder after all that was asked for is there. Raises FedsimError."""
    hosts = [_host(name) for name in servers]
    if not hosts and not (folder / "server.pem").exists():
        raise FedsimError(
            f"{folder}: has no server.pem yet; say by which names workers reach the server: --server server.lan --server 10.0.0.5"
        )
    others = sorted(file.stem for file in folder.glob("*.pem") if file.stem not in _FILES)
    if tokens and others:
        raise FedsimError(
            f"{folder}: {', '.join(others)} have certificates, and a server asks all for them or none; tokens need another folder: -o"
        )
    if not tokens and workers and (folder / "tokens").exists():
        raise FedsimError(
            f"{folder}: its workers have tokens, and a server asks all for them or none; go on with --tokens, or elsewhere: -o"
        )
    authority = Authority(folder, days)
    known = (
        pem.names(pem.certificates(pem.read(folder / "server.pem"), folder / "server.pem")[0])
        if not hosts
        else [str(host.value) for host in hosts]
    )
    both = {name.lower() for name in known} & {name.lower() for name in [*others, *(worker.name for worker in workers)]}
    if both:
        raise FedsimError(f"{folder}: `{both.pop()}` can't be the name of the server and of a worker, which could then pass for the server")
    if hosts:
        authority.server(hosts)
    for worker in workers:
        (authority.token if tokens else authority.worker)(worker)
    return authority.made


class Authority:
    """A folder with ca.pem and ca.key, made at the first call and used again at later ones. Raises FedsimError where files don't fit."""

    def __init__(self, folder: Path, days: int) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        self.folder, self.days, self.made = folder, days, list[Path]()
        file, key_file = folder / "ca.pem", folder / "ca.key"
        _writable(folder)
        if not _there(file, key_file):
            self._write_ca(file, key_file)
        found = pem.pair(file, key_file, None)
        key = load_pem_private_key(found.key, None)
        self.certificate: x509.Certificate = x509.load_pem_x509_certificate(found.chain)
        self.key: EllipticCurvePrivateKey = key  # type: ignore[assignment]

    def server(self, hosts: "Sequence[x509.DNSName | x509.IPAddress]") -> None:
        """server.pem and server.key, good for these names and addresses."""
        from cryptography.x509.oid import ExtendedKeyUsageOID

        file = self.folder / "server.pem"
        if _there(file, file.with_suffix(".key")):
            found = pem.certificates(pem.read(file), file)[0]
            missing = [name for name in (str(host.value) for host in hosts) if name not in pem.names(found)]
            _kept(not missing, file, f"is for {', '.join(pem.names(found))}, not for {', '.join(missing)}")
            pem.in_force(found, file)
        else:
            self._write(file, str(hosts[0].value)[:64], hosts, [ExtendedKeyUsageOID.SERVER_AUTH])

    def worker(self, worker: Worker) -> None:
        """NAME.pem and NAME.key, which name the nodes; to its peers, where there are some, the worker is a server too."""
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID

        file = self.folder / f"{worker.name}.pem"
        if _there(file, file.with_suffix(".key")):
            found = pem.certificates(pem.read(file), file)[0]
            had = ",".join(pem.leases(found))
            _kept(had == worker.written, file, f"is for nodes {had}, not for {worker.written}")
            pem.in_force(found, file)
        else:
            lease = x509.UniformResourceIdentifier(pem.LEASE + worker.written)
            uses = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
            self._write(file, worker.name, [x509.DNSName(worker.name), lease], uses)

    def token(self, worker: Worker) -> None:
        """A line in the server's file `tokens`, and the same alone in NAME.token."""
        file = self.folder / "tokens"
        known = {token.name: token for token in read_tokens(file)} if file.exists() else dict[str, Token]()
        if worker.name in known:
            had = known[worker.name].nodes
            if had != worker.nodes:
                raise FedsimError(
                    f"{file}: `{worker.name}` is for nodes {ANY if had is None else had}; remove its line and {worker.name}.token first"
                )
            return
        line = f"{secrets.token_urlsafe(32)} {worker.name} {worker.written}\n".encode()
        self._create(self.folder / f"{worker.name}.token", line, 0o600)
        if not file.exists():
            self._create(file, b"", 0o600)
        with file.open("ab") as opened:
            opened.write(line)

    def _write_ca(self, file: Path, key_file: Path) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        name = _common(f"fedsim CA {secrets.token_hex(3)}")
        usage = dict.fromkeys(("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
        made = (
            _builder(name, name, key, datetime.now(UTC) + timedelta(days=max(CA_DAYS, self.days)))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.KeyUsage(**usage, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False), critical=True
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        self._store(file, key_file, made, key, key)

    def _write(self, file: Path, name: str, names: "Sequence[x509.GeneralName]", uses: "Sequence[ObjectIdentifier]") -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        until = min(datetime.now(UTC) + timedelta(days=self.days), self.certificate.not_valid_after_utc)
        made = (
            _builder(_common(name), self.certificate.subject, key, until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        self._store(file, file.with_suffix(".key"), made, key, self.key)

    def _store(
        self, file: Path, key_file: Path, made: "x509.CertificateBuilder", key: "EllipticCurvePrivateKey", signer: "EllipticCurvePrivateKey"
    ) -> None:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        self._create(key_file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
        self._create(file, made.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM), 0o644)

    def _create(self, file: Path, content: bytes, mode: int) -> None:
        try:
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
                opened.write(content)
        except OSError as error:
            raise FedsimError(f"{file}: can't be made: {error.strerror or error}") from None
        self.made.append(file)


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FedsimError(f"{folder}: can't be made: {error.strerror or error}") from None


def _there(file: Path, key_file: Path) -> bool:
    if file.exists() != key_file.exists():
        alone, lost = (file, key_file) if file.exists() else (key_file, file)
        raise FedsimError(f"{alone}: is there without {lost.name}; bring that back, or remove {alone.name}")
    return file.exists()


def _kept(fits: bool, file: Path, said: str) -> None:
    if not fits:
        raise FedsimError(f"{file}: {said}; remove {file.name} and {file.stem}.key first, for nothing is overwritten")


def _host(name: str) -> "x509.DNSName | x509.IPAddress":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not _HOST.fullmatch(name):
        raise FedsimError(f"--server {name}: a name such as server.lan, or an address such as 10.0.0.5, is due, without a port")
    return x509.DNSName(name)


def _common(name: str) -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(name: "x509.Name", issuer: "x509.Name", key: "EllipticCurvePrivateKey", until: datetime) -> "x509.CertificateBuilder":
    from cryptography import x509

    built = x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(key.public_key())
    return built.serial_number(x509.random_serial_number()).not_valid_before(datetime.now(UTC) - EARLIER).not_valid_after(until)
