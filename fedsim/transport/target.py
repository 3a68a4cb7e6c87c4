"""Addresses of machines as they are written: HOST:PORT, [::1]:7400; and which of them are this machine alone."""

import ipaddress

from fedsim.base.errors import FedsimError


def split(target: str) -> tuple[str, int]:
    """Host and port. Raises FedsimError where it is no address."""
    host, colon, port = target.rpartition(":")
    inner = host.removeprefix("[").removesuffix("]")
    if "//" in target:
        raise FedsimError(f"{target}: an address has no scheme; HOST:PORT is due, such as server.lan:7400")
    if not colon or not inner or not port.isascii() or not port.isdigit() or int(port) > 65535 or (":" in inner) != host.startswith("["):
        raise FedsimError(f"{target}: HOST:PORT is due, such as server.lan:7400 or [fe80::1]:7400")
    return inner, int(port)


def is_loopback(target: str) -> bool:
    """Whether nothing that goes there leaves this machine; a name other than `localhost` may mean any machine."""
    host = split(target)[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
