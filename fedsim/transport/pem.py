"""Files of certificates, keys and tokens, each checked as it is read; what is wrong is said with file, name, date and cure."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.base.errors import FedsimError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

MAKE = "`fedsim certs` makes it"
LEASE = "fedsim:nodes:"  # a URI in a worker's certificate begins so, and goes on with the nodes it may host
_LARGEST = 1 << 20


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, both fit for use: the PEM texts, and the files they came from."""

    certificate: Path
    key_file: Path
    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)


def read(file: Path, secret: bool = False) -> bytes:
    """A small file; a secret one must be its owner's alone. Raises FedsimError."""
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno())
            if secret and os.name == "posix" and mode.st_mode & (0o037 if mode.st_uid == 0 else 0o077):
                shown = stat.filemode(mode.st_mode)
                raise FedsimError(f"{file}: others may read this secret ({shown}); its owner alone should: chmod 600 {file}")
            content = opened.read(_LARGEST + 1)
    except FileNotFoundError:
        raise FedsimError(f"{file}: no such file; {MAKE}") from None
    except OSError as error:
        raise FedsimError(f"{file}: can't be read: {error.strerror or error}") from None
    if len(content) > _LARGEST:
        raise FedsimError(f"{file}: more than 1 MiB; a file of certificates, a key or tokens is small")
    return content


def certificates(content: bytes, file: Path) -> list["Certificate"]:
    """All certificates in what was read of a PEM file. Raises FedsimError."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        what = "a private key" if b"PRIVATE KEY-----" in content else "no certificate in PEM form (-----BEGIN CERTIFICATE-----)"
        raise FedsimError(f"{file}: holds {what}; a certificate is due, and {MAKE}") from None


def authority(file: Path) -> bytes:
    """The PEM text of a CA's certificates, all in force. Raises FedsimError."""
    content = read(file)
    for certificate in certificates(content, file):
        in_force(certificate, file)
    return content


def pair(file: Path, key_file: Path, ca: Path | None) -> Pair:
    """A certificate with its key, found to fit, to be in force, and signed by the CA where one is given. Raises FedsimError."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content, secret = read(file), read(key_file, secret=True)
    chain = certificates(content, file)
    try:
        key = load_pem_private_key(secret, None)
    except TypeError:
        raise FedsimError(f"{key_file}: the key has a passphrase, and nobody is there to type it; store it without") from None
    except ValueError:
        raise FedsimError(f"{key_file}: holds no private key in PEM form (-----BEGIN PRIVATE KEY-----); {MAKE}") from None
    if key.public_key() != chain[0].public_key():
        raise FedsimError(f"{key_file}: is not the key of {file} ({name(chain[0])}); both must come from one call of `fedsim certs`")
    for certificate in chain:
        in_force(certificate, file)
    if ca and not signed(chain, certificates(read(ca), ca)):
        raise FedsimError(f"{file}: the CA in {ca} did not sign {name(chain[0])}; take both from one folder of `fedsim certs`")
    return Pair(file, key_file, content, secret)


def in_force(certificate: "Certificate", file: Path | str) -> None:
    """Raises FedsimError outside the certificate's time."""
    said = out_of_date(certificate)
    if said:
        raise FedsimError(f"{file}: {name(certificate)} {said}")


def out_of_date(certificate: "Certificate", now: datetime | None = None) -> str:
    """What is wrong with a certificate's time, and what to do; empty where nothing is."""
    now = now or datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        return f"expired on {date(certificate.not_valid_after_utc)}; remove it with its key and make another with `fedsim certs`"
    if now < certificate.not_valid_before_utc:
        return f"is not valid before {date(certificate.not_valid_before_utc)}, and here it is {date(now)}; set the clock right"
    return ""


def signed(chain: Sequence["Certificate"], roots: Sequence["Certificate"]) -> bool:
    """Whether one of the roots signed the first certificate, or another of the chain that signed it."""
    from cryptography.exceptions import InvalidSignature

    def by(certificate: "Certificate", issuer: "Certificate") -> bool:
        try:
            certificate.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    first, *others = chain
    return any(by(first, root) for root in roots) or bool(others and by(first, others[0]) and signed(others, roots))


def date(moment: datetime) -> str:
    """`2026-11-29 14:05 UTC`"""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def name(certificate: "Certificate", issuer: bool = False) -> str:
    """The common name of a certificate, or of who signed it, in quotes for a sentence."""
    from cryptography.x509.oid import NameOID

    of = certificate.issuer if issuer else certificate.subject
    found = of.get_attributes_for_oid(NameOID.COMMON_NAME)
    return f"`{str(found[0].value) if found else of.rfc4514_string()}`"


def names(certificate: "Certificate") -> list[str]:
    """The names and addresses that a certificate is good for."""
    from cryptography import x509

    try:
        stated = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [*stated.get_values_for_type(x509.DNSName), *map(str, stated.get_values_for_type(x509.IPAddress))]


def leases(certificate: "Certificate") -> list[str]:
    """What a certificate says of the nodes that its owner may host, as it is written there."""
    from cryptography import x509

    try:
        stated = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    uris = stated.get_values_for_type(x509.UniformResourceIdentifier)
    return [uri.removeprefix(LEASE) for uri in uris if uri.startswith(LEASE)]


def fingerprint(certificate: "Certificate") -> str:
    """The first bytes of a certificate's SHA-256, to compare by eye: `61:0e:93:aa`"""
    from cryptography.hazmat.primitives import hashes

    return certificate.fingerprint(hashes.SHA256())[:4].hex(":")
