"""What stands between a worker and its server, one layer after the other: name, TCP, TLS, HTTP/2.

grpc says no more than "failed to connect to all addresses". Here each layer is tried by itself, with the sockets and the TLS of Python,
until the first that fails, whose cause and cure are told. Nothing is sent that a stranger could not send.
"""

import os
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsim.base.address import hide
from fedsim.base.errors import FedsimError
from fedsim.base.text import duration
from fedsim.base.visible import one_line
from fedsim.transport import pem
from fedsim.transport.identity import WorkerIdentity
from fedsim.transport.target import split

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

PATIENCE = 5.0  # seconds for each layer
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5)  # the preface of HTTP/2 and an empty SETTINGS frame
FRAME = 9  # bytes of a frame's head
SETTINGS, ALERT = 4, 21  # HTTP/2's type of frame, TLS's type of record
ENDED = "UNEXPECTED_EOF_WHILE_READING"  # OpenSSL's name of an end without a goodbye
# OpenSSL's codes of what is wrong with a certificate
EARLY, LATE, NAME, ADDRESS, STRANGERS = 9, 10, 62, 64, (2, 18, 19, 20, 21)


@dataclass(frozen=True)
class Finding:
    """What one layer showed: a fact, or the cause of a failure with its cure."""

    layer: str
    good: bool
    said: str
    cure: str = ""
    final: bool = False  # a failure that waiting does not mend


class Failed(Exception):
    """A layer that does not work: cause and cure."""


class Never(Failed):
    """The same, where waiting changes nothing."""


def explain(target: str, identity: WorkerIdentity, patience: float = PATIENCE, *, ending: bool = False) -> str | None:
    """Why no connection comes about, and what to do; None where all layers below gRPC work. Blocks, up to `patience` seconds a layer.

    With `ending` raises FedsimError where it will not come about by waiting.
    """
    for finding in layers(target, identity, patience):
        if not finding.good:
            why = f"{finding.layer}: {finding.said}; {finding.cure}"
            if finding.final and ending:
                raise FedsimError(f"{target}: {why}")
            return why
    proxy = _proxy(split(target)[0])
    return f"proxy: {proxy.said}; {proxy.cure}" if proxy else None


def layers(target: str, identity: WorkerIdentity, patience: float = PATIENCE) -> Iterator[Finding]:
    """A finding a layer from the name upwards; a failure is the last."""
    host, port = split(target)
    layer = "name"
    try:
        places = _resolved(host, port)
        yield Finding(layer, True, f"{host} is {', '.join(place[0] for place in places)}")
        if proxy := _proxy(host):
            yield proxy
        layer, begun = "tcp", time.monotonic()
        with _connected(target, places, patience) as plain:
            yield Finding(layer, True, f"port {port} is open, {duration(time.monotonic() - begun)} to connect")
            if identity.insecure:
                layer = "http/2"
                _greeted(plain, identity)
            else:
                layer = "tls"
                with _secured(plain, target, identity, patience) as secured:
                    yield Finding(layer, True, _shown(secured))
                    layer = "http/2"
                    _greeted(secured, identity)
        yield Finding(layer, True, "the server speaks it")
    except Failed as failed:
        yield Finding(layer, False, one_line(failed.args[0]), failed.args[1], isinstance(failed, Never))
    except ValueError as error:  # out of a certificate that makes no sense
        yield Finding(layer, False, one_line(f"the server's certificate can't be read ({error})"), "make it with `fedsim certs`")


def _proxy(host: str) -> Finding | None:
    """The proxy that grpc takes, by the variables it reads; the probe goes straight."""
    name = next((name for name in ("grpc_proxy", "https_proxy", "http_proxy") if os.environ.get(name)), None)
    spared = next((os.environ[name] for name in ("no_grpc_proxy", "no_proxy") if name in os.environ), "").split(",")
    if name is None or any(host.endswith(end.strip()) for end in spared if end.strip()):
        return None
    said = f"grpc goes through {name}={hide(os.environ[name])}, which is not tried here"
    return Finding("proxy", True, said, f"no_proxy={host} makes it go straight")


def _resolved(host: str, port: int) -> dict[Any, socket.AddressFamily]:
    """Families of the addresses to connect to, in the system's order."""
    try:
        return {place[4]: place[0] for place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (socket.gaierror, UnicodeError) as error:
        why = error.strerror if isinstance(error, socket.gaierror) else "no name of a machine"
        raise Failed(
            f"{host} can't be resolved ({why})", "check the spelling and this machine's DNS, or give the server's IP address"
        ) from None


def _connected(target: str, places: dict[Any, socket.AddressFamily], patience: float) -> socket.socket:
    failures = dict[str, str]()
    for address, family in places.items():
        tried = socket.socket(family, socket.SOCK_STREAM)
        tried.settimeout(patience)
        try:
            tried.connect(address)
            return tried
        except ConnectionRefusedError:
            failures[f"nothing listens at {target}"] = "start `fedsim serve` there, or correct the port; a firewall may refuse, too"
        except TimeoutError:
            failures[f"no answer from {target} within {duration(patience)}"] = (
                "a firewall drops the packets, or the machine is off: open the port there"
            )
        except OSError as error:
            failures[f"no way to {target} ({error.strerror})"] = "check the address, this machine's network and its routes"
        tried.close()
    raise Failed("; ".join(failures), next(iter(failures.values())))


def _context(identity: WorkerIdentity, checked: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    if not checked:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    elif identity.ca:
        context.load_verify_locations(cadata=identity.ca.decode("ascii", "ignore"))
    else:
        context.load_default_certs()
    if identity.pair:
        try:
            context.load_cert_chain(identity.pair.certificate, identity.pair.key_file)
        except OSError as error:
            raise Failed(f"{identity.pair.certificate} or its key changed since it was read ({error})", "start again") from None
    return context


def _secured(plain: socket.socket, target: str, identity: WorkerIdentity, patience: float) -> ssl.SSLSocket:
    host, context = split(target)[0], _context(identity, checked=True)
    plain.settimeout(patience)
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raise _untrusted(error, _certificate(target, identity, patience), host, identity) from None
    except TimeoutError:
        raise Failed(
            f"{target} takes connections and says nothing", "another program may hold the port, or a proxy waits in between"
        ) from None
    except ssl.SSLError as error:
        reason = error.reason or str(error)
        if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", ENDED):
            kind = Failed if reason == ENDED else Never
            raise kind(f"{target} does not speak TLS", "check the port; of a server with --insecure, join with --insecure") from None
        raise Never(f"{target} ends the handshake ({reason})", _anew(identity)) from None
    except OSError:
        raise Failed(f"{target} closes the connection instead of speaking TLS", "check the port, and proxies in between") from None


def _certificate(target: str, identity: WorkerIdentity, patience: float) -> "Certificate | None":
    """What the server shows, looked at without trust; None where it shows nothing this time."""
    from cryptography import x509

    host, port = split(target)
    try:
        with (
            socket.create_connection((host, port), patience) as plain,
            _context(identity, checked=False).wrap_socket(plain, server_hostname=host) as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
            return x509.load_der_x509_certificate(shown) if shown else None
    except (OSError, ValueError):
        return None


def _untrusted(error: ssl.SSLCertVerificationError, shown: "Certificate | None", host: str, identity: WorkerIdentity) -> Never:
    code, of = error.verify_code, f"the server's certificate {pem.name(shown) if shown else ''}".rstrip()
    if code in (EARLY, LATE):
        said = pem.out_of_date(shown) if shown else ""
        cause, _, _ = said.partition(";")
        clock = (
            "set this machine's clock right"
            if code == EARLY
            else "on the server, remove server.pem and server.key and make them with `fedsim certs`"
        )
        return Never(f"{of} {cause or 'or one that certified it is out of its time'}", clock)
    if code in (NAME, ADDRESS):
        names = ", ".join(pem.names(shown)[:8]) if shown else "others"
        return Never(
            f"{of} is for {names or 'no name'}, not for {host}",
            f"join by one of those names, or make it with `fedsim certs --server {host}`",
        )
    if code in STRANGERS:
        by = f" (by {pem.name(shown, issuer=True)})" if shown else ""
        ours = identity.ca_file or "this machine's usual CAs"
        return Never(f"{of}{by} is not certified by {ours}{_ca(identity)}", "copy ca.pem from the server's folder of certificates")
    return Never(f"{of} is refused: {error.verify_message}", "make it with `fedsim certs`")


def _ca(identity: WorkerIdentity) -> str:
    if not identity.ca or not identity.ca_file:
        return ""
    return f" ({', '.join(pem.name(one) for one in pem.certificates(identity.ca, identity.ca_file))})"


def _shown(secured: ssl.SSLSocket) -> str:
    from cryptography import x509

    shown = x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
    until = pem.date(shown.not_valid_after_utc)
    return f"{secured.version()}; {', '.join(pem.names(shown))}, certified by {pem.name(shown, issuer=True)} until {until}"


def _greeted(stream: socket.socket, identity: WorkerIdentity) -> None:
    """HTTP/2's first words; under TLS 1.3 this is also where a server says no to a worker's certificate."""
    if isinstance(stream, ssl.SSLSocket) and stream.selected_alpn_protocol() != "h2":
        raise Failed("the server agrees to no HTTP/2 (ALPN)", "another server holds the port, or a proxy in between speaks HTTP/1 only")
    got = b""
    try:
        stream.sendall(HELLO)
        while len(got) < FRAME and (more := stream.recv(FRAME - len(got))):
            got += more
    except TimeoutError:
        raise Failed("the server takes the connection and says nothing", "another program may hold the port") from None
    except (ssl.SSLError, ConnectionError) as error:
        if isinstance(stream, ssl.SSLSocket):
            kind = Never if isinstance(error, ssl.SSLError) else Failed
            raise kind(f"the server ends the connection{_alert(error)}: {_mine(identity)}", _anew(identity)) from None
    if len(got) == FRAME and got[3] == SETTINGS:
        return
    if got[:1] == bytes([ALERT]):
        raise Never("the server speaks TLS", "leave --insecure out, and show a certificate or a token")
    if got.startswith((b"HTTP/", b"<")):
        raise Never("the server speaks HTTP/1", "another server holds the port, or a proxy in between speaks HTTP/1 only")
    if got or not isinstance(stream, ssl.SSLSocket):
        raise Failed("the server does not speak HTTP/2", "another server holds the port; a fedsim server with TLS needs no --insecure")
    raise Failed(f"the server ends the connection: {_mine(identity)}", _anew(identity))


def _alert(error: OSError) -> str:
    reason = error.reason if isinstance(error, ssl.SSLError) else None
    return f" ({reason.rpartition('ALERT_')[2].replace('_', ' ').lower()})" if reason else ""


def _mine(identity: WorkerIdentity) -> str:
    if not identity.pair:
        return "it may want a certificate, and none was shown"
    shown = pem.certificates(identity.pair.chain, identity.pair.certificate)[0]
    times = f"{pem.date(shown.not_valid_before_utc)} to {pem.date(shown.not_valid_after_utc)}"
    return f"it does not take {identity.pair.certificate} ({pem.name(shown)}, by {pem.name(shown, issuer=True)}, {times})"


def _anew(identity: WorkerIdentity) -> str:
    if not identity.pair:
        return "join with --certificates FOLDER"
    return "make one in the server's folder of certificates with `fedsim certs --workers NAME=NODES` and copy it here; compare the clocks"
