"""Letters that pass through the introducer: sealed by the worker that writes for the one that reads, so that nobody between can open them.

Each worker draws an X25519 key at its start and signs it with its certificate's; of two workers' keys follow two keys, one a direction,
with which letters are encrypted (ChaCha20-Poly1305), each under its own number. Without certificates keys are taken on trust.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fedsim.base.errors import BrokenMessage, FedsimError
from fedsim.transport import pem
from fedsim.transport.identity import ANY, WorkerIdentity
from fedsim.transport.nodes import Nodes, parse


class Seals:
    """A worker's own key for one run."""

    def __init__(self, me: bytes, run: str, identity: WorkerIdentity) -> None:
        self.me, self.run, self.identity = me, run, identity
        self.key = X25519PrivateKey.generate()

    @property
    def shown(self) -> dict[str, str]:
        """What others must know of it."""
        public = self.key.public_key().public_bytes_raw()
        pair = self.identity.pair
        if pair is None:
            return {"key": public.hex()}
        own = load_pem_private_key(pair.key, None)
        assert isinstance(own, EllipticCurvePrivateKey)
        signature = own.sign(self._claim(self.me, public), ECDSA(hashes.SHA256()))
        return {"key": public.hex(), "signature": signature.hex(), "certificate": pair.chain.decode()}

    def _claim(self, who: bytes, public: bytes) -> bytes:
        return b"fedsim peer " + self.run.encode() + b"\0" + who + public

    def known(self, who: bytes, nodes: Sequence[int], shown: Mapping[str, str]) -> X25519PublicKey:
        """Another's key. Raises FedsimError where its certificate does not vouch for it and these nodes."""
        public = bytes.fromhex(shown["key"])
        if self.identity.ca is not None:
            chain = pem.certificates(shown.get("certificate", "").encode(), Path("a peer's certificate"))
            leases = [parse(lease, ANY) for lease in pem.leases(chain[0])]
            signer = chain[0].public_key()
            good = pem.signed(chain, x509.load_pem_x509_certificates(self.identity.ca)) and not pem.out_of_date(chain[0])
            good = good and any(lease is None or not Nodes.of(nodes).without(lease) for lease in leases)
            try:
                assert isinstance(signer, EllipticCurvePublicKey)
                signer.verify(bytes.fromhex(shown.get("signature", "")), self._claim(who, public), ECDSA(hashes.SHA256()))
            except InvalidSignature:
                good = False
            if not good:
                raise FedsimError(f"the key of the worker of nodes {Nodes.of(nodes)} is not vouched for by its certificate")
        return X25519PublicKey.from_public_bytes(public)

    def _cipher(self, other: X25519PublicKey, sender: bytes, reader: bytes) -> ChaCha20Poly1305:
        info = b"fedsim letter " + self.run.encode() + b"\0" + sender + reader
        return ChaCha20Poly1305(HKDF(hashes.SHA256(), 32, None, info).derive(self.key.exchange(other)))

    def seal(self, letter: bytes, to: bytes, key: X25519PublicKey, number: int) -> bytes:
        """What travels of a letter of this number."""
        return self._cipher(key, self.me, to).encrypt(number.to_bytes(12, "big"), letter, None)

    def open(self, sealed: Path, sender: bytes, key: X25519PublicKey, number: int) -> bytes:
        """The letter. Raises BrokenMessage for one that is another's, or was changed."""
        try:
            return self._cipher(key, sender, self.me).decrypt(number.to_bytes(12, "big"), sealed.read_bytes(), None)
        except InvalidTag as error:
            raise BrokenMessage("a letter that was changed on its way") from error


def facts_of(said: Mapping[str, Any]) -> dict[str, str]:
    """Of a worker's facts what its peers must know of its key."""
    return {name: str(said[name]) for name in ("key", "signature", "certificate") if name in said}
