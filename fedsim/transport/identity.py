"""Who is at the other end: certificates that name the nodes a worker may host, tokens in their place, or plaintext where it was asked for.

grpc serves TLS 1.2 and 1.3 and takes the newer. Handshakes that fail end inside it, before any call of ours: of a worker with a wrong
certificate a server's log has at most grpc's own line `Handshake failed ...`, without an address. The worker finds out why
(`probe.explain`) and says so where its user reads.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fedsim.base.errors import FedsimError
from fedsim.transport import pem
from fedsim.transport.messages_pb2 import CERTIFICATE, TOKEN, Refusal
from fedsim.transport.nodes import Nodes, parse
from fedsim.transport.target import is_loopback
from fedsim.transport.wire import TOKEN as HEADER

if TYPE_CHECKING:
    import grpc

ANY = "all"  # in the place of nodes: a lease of every node
_TOKEN = re.compile(r"[A-Za-z0-9_-]{20,200}")


class Context(Protocol):
    """What of a grpc call tells who called."""

    def auth_context(self) -> Mapping[str, Any]: ...

    def invocation_metadata(self) -> Any: ...


@dataclass(frozen=True)
class Claim:
    """Who a worker is (empty: nobody asked), and the nodes it may host; None: any."""

    name: str
    nodes: Nodes | None = None
    by_token: bool = False

    def refuses(self, wanted: Nodes) -> Refusal | None:
        """Why the worker may not host these nodes; None where it may."""
        beyond = Nodes() if self.nodes is None else wanted.without(self.nodes)
        if not beyond:
            return None
        proof = "token" if self.by_token else "certificate"
        return Refusal(
            reason=TOKEN if self.by_token else CERTIFICATE,
            cause=f"the {proof} of `{self.name}` is for nodes {self.nodes}, not for {beyond}",
            cure=f"join with --nodes {self.nodes}, or make a {proof} for {wanted} with `fedsim certs`",
        )


@dataclass(frozen=True)
class Token:
    """A line of a token file."""

    secret: str = field(repr=False)
    name: str = ""
    nodes: Nodes | None = None


@dataclass(frozen=True)
class ServerIdentity:
    """What a server shows to workers, and how it tells who they are.

    With tokens it asks for no certificates: grpc's Python server can demand them of all or of none. A worker that has both sends both.
    """

    pair: pem.Pair | None
    ca: bytes | None = None
    tokens: tuple[Token, ...] = ()
    exposed: bool = False  # plaintext beyond this machine

    @classmethod
    def load(cls, certificate: Path, key: Path, ca: Path | None, tokens: Path | None = None) -> "ServerIdentity":
        """Of files, each checked. Raises FedsimError with the first that is no good."""
        if ca is None and tokens is None:
            raise FedsimError(f"{certificate}: nobody could join; a CA for workers' certificates or a token file is needed")
        trusted = pem.authority(ca) if ca else None
        return cls(pem.pair(certificate, key, ca), trusted, read_tokens(tokens) if tokens else ())

    @classmethod
    def folder(cls, folder: Path, tokens: Path | None = None) -> "ServerIdentity":
        """Of a folder that `fedsim certs` wrote; with a file `tokens` in it, by tokens."""
        there = folder / "tokens"
        return cls.load(folder / "server.pem", folder / "server.key", folder / "ca.pem", tokens or (there if there.exists() else None))

    @classmethod
    def plain(cls, exposed: bool = False) -> "ServerIdentity":
        """Plaintext, and everybody is let in; `exposed`: from other machines too."""
        return cls(None, exposed=exposed)

    def check(self, listen: str) -> None:
        """Raises FedsimError where plaintext would leave this machine and nobody asked for that."""
        _no_plaintext(self.pair is None and not self.exposed, listen, "listening")

    def credentials(self) -> "grpc.ServerCredentials | None":
        """For grpc; None: plaintext."""
        import grpc

        if self.pair is None:
            return None
        return grpc.ssl_server_credentials([(self.pair.key, self.pair.chain)], self.ca, require_client_auth=not self.tokens)

    def identify(self, context: Context) -> Claim | Refusal:
        """Who calls, by the certificate of the connection or the token of the call."""
        if self.pair is None:
            return Claim("")
        shown = context.auth_context().get("x509_pem_cert")
        if shown:
            return _by_certificate(next(iter(shown)))
        return self._by_token(dict(context.invocation_metadata() or ()).get(HEADER))

    def _by_token(self, given: str | bytes | None) -> Claim | Refusal:
        cure = "ask whoever runs the server for the token file that `fedsim certs --tokens` wrote, and join with --token-file FILE"
        if not given:
            return Refusal(reason=TOKEN, cause="this server lets workers in by token, and none was sent", cure=cure)
        mine = _digest(given)
        known = [token for token in self.tokens if hmac.compare_digest(_digest(token.secret), mine)]
        if not known:
            return Refusal(reason=TOKEN, cause="the token that was sent is none of this server's", cure=cure)
        return Claim(known[0].name, known[0].nodes, by_token=True)


@dataclass(frozen=True)
class WorkerIdentity:
    """What a worker shows to a server, and whom it takes for the server: `ca`, or anybody that the world's usual CAs certify."""

    ca_file: Path | None = None
    ca: bytes | None = None
    pair: pem.Pair | None = None
    token: Token | None = None
    insecure: bool = False
    exposed: bool = False

    @classmethod
    def load(
        cls,
        ca: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        token_file: Path | None = None,
        insecure: bool = False,
        exposed: bool = False,
    ) -> "WorkerIdentity":
        """Of files, each checked; key and CA lie beside the certificate if nothing else is said. Raises FedsimError."""
        if insecure:
            given = certificate or token_file
            if given:
                raise FedsimError(f"{given}: goes with TLS; --insecure would send it readable, or not at all: leave one of them out")
            return cls(insecure=True, exposed=exposed)
        if certificate is None and token_file is None:
            raise FedsimError("a worker shows who it is: --certificate FILE or --token-file FILE, both from `fedsim certs`; or --insecure")
        if ca is None:
            beside = (certificate or token_file or Path()).parent / "ca.pem"
            ca = beside if certificate or beside.exists() else None
        trusted = pem.authority(ca) if ca else None
        pair = pem.pair(certificate, key or certificate.with_suffix(".key"), ca) if certificate else None
        return cls(ca, trusted, pair, _own_token(token_file) if token_file else None)

    @classmethod
    def folder(cls, folder: Path, token_file: Path | None = None) -> "WorkerIdentity":
        """Of a folder with what `fedsim certs` said to copy: ca.pem and one worker's files."""
        own = sorted(file for kind in ("*.pem", "*.token") for file in folder.glob(kind) if file.stem not in ("ca", "server"))
        if token_file:
            return cls.load(folder / "ca.pem", None, None, token_file)
        if not own:
            raise FedsimError(f"{folder}: holds neither NAME.pem nor NAME.token of a worker; `fedsim certs --workers NAME` makes one")
        if len(own) > 1:
            how = "--certificate" if own[0].suffix == ".pem" else "--token-file"
            raise FedsimError(f"{folder}: is for several workers ({', '.join(file.stem for file in own)}); choose with {how} {own[0]}")
        by_token = own[0].suffix == ".token"
        return cls.load(folder / "ca.pem", None if by_token else own[0], None, own[0] if by_token else None)

    def check(self, target: str) -> None:
        """Raises FedsimError where plaintext would leave this machine and nobody asked for that."""
        _no_plaintext(self.insecure and not self.exposed, target, "joining")

    def credentials(self) -> "grpc.ChannelCredentials | None":
        """For grpc; None: plaintext."""
        import grpc

        if self.insecure:
            return None
        return grpc.ssl_channel_credentials(self.ca, *((self.pair.key, self.pair.chain) if self.pair else ()))

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with each call."""
        return ((HEADER, self.token.secret),) if self.token else ()


def read_tokens(file: Path) -> tuple[Token, ...]:
    """The lines `TOKEN NAME NODES` of a file; empty ones and those after # are skipped. Raises FedsimError with the line."""
    found: dict[str, Token] = {}
    for number, line in enumerate(pem.read(file, secret=True).decode("utf-8", "replace").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"{file}:{number}"
        if len(words) != 3:
            raise FedsimError(f"{where}: {len(words)} words; `TOKEN NAME NODES` are due, NODES being such as 0..99 or {ANY}")
        secret, name, nodes = words
        if not _TOKEN.fullmatch(secret):
            raise FedsimError(
                f"{where}: the token of `{name}` must be 20 to 200 letters, digits, _ or -; `fedsim certs --tokens` makes good ones"
            )
        if secret in found:
            raise FedsimError(f"{where}: the tokens of `{found[secret].name}` and `{name}` are the same; each worker needs its own")
        try:
            found[secret] = Token(secret, name, parse(nodes, ANY))
        except ValueError as error:
            raise FedsimError(f"{where}: {error}") from None
    if not found:
        raise FedsimError(f"{file}: holds no token; {pem.MAKE}")
    return tuple(found.values())


def _own_token(file: Path) -> Token:
    found = read_tokens(file)
    if len(found) > 1:
        raise FedsimError(f"{file}: holds {len(found)} tokens; a worker's file has its own line only, so that it can't pass for another")
    return found[0]


def _by_certificate(text: bytes) -> Claim | Refusal:
    from cryptography import x509

    shown = x509.load_pem_x509_certificate(text)
    name, cure = pem.name(shown).strip("`"), "make the worker's with `fedsim certs --workers NAME=NODES`"
    leases = pem.leases(shown)
    if not leases:
        cause = f"the certificate of `{name}` is for no nodes, so it is none of a worker"
        return Refusal(reason=CERTIFICATE, cause=cause, cure=cure)
    try:
        nodes = [parse(lease, ANY) for lease in leases]
    except ValueError as error:
        return Refusal(reason=CERTIFICATE, cause=f"the nodes in the certificate of `{name}` can't be read: {error}", cure=cure)
    return Claim(name, None if None in nodes else Nodes.of(part for some in nodes if some is not None for part in some.ranges))


def _digest(secret: str | bytes) -> bytes:
    return hashlib.sha256(secret if isinstance(secret, bytes) else secret.encode()).digest()


def _no_plaintext(unwanted: bool, address: str, doing: str) -> None:
    if unwanted and not is_loopback(address):
        raise FedsimError(
            f"{doing} at {address} in plaintext lets everybody on the way read and change models; use certificates (`fedsim certs`), "
            "or say --insecure-beyond-loopback as well"
        )
