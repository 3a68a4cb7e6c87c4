"""Addresses with passwords, `https://user:secret@host`: what is written and shown of them, and where the password then comes from."""

import os
import re
from urllib.parse import quote, unquote

MASK = "***"
# HTTP's password ends at the last @ before the path, unless a port stands there; SQLAlchemy's may have any sign but @.
_HTTP = re.compile(r"(https?://[^\s/?#:@]*:)(?!\d+(?:[\s/?#:'\")]|$))(?:[^\s/?#]*(?=@)|[^/?#\n]*(?=@)|[^@\n]*(?=@))")
_OTHER = re.compile(r"((?<![\w+.-])(?!https?:)[a-z][\w+.-]*://[^\s/:@]*:)(?:[^\s@]*(?=@)|[^@\n]*(?=@))")
_URL = re.compile(r"[a-z][\w+.-]*://\S+")
_QUERY = re.compile(r"((?:passw(?:or)?d|pwd|secret|token)(?:=|%3D))(?:(?!%3B)[^&;#\s'\"])+", re.IGNORECASE)


def hide(text: str) -> str:
    """The text with `***` for each password of an address in it."""
    if "://" not in text:
        return text
    shown = _OTHER.sub(rf"\1{MASK}", _HTTP.sub(rf"\1{MASK}", text))
    return _URL.sub(lambda found: _QUERY.sub(rf"\1{MASK}", found[0]), shown)


def hide_known(text: str, address: str) -> str:
    """The text without the passwords of that address, however they are written there, and without those of other addresses."""
    pieces = [re.escape(piece) for piece in hide(address).split(MASK)]
    found = re.fullmatch("(.*)".join(pieces), address, re.DOTALL)
    for secret in found.groups() if found else ():
        for written in {secret, unquote(secret), quote(unquote(secret), safe="")} - {"", MASK}:
            text = text.replace(written, MASK)
    return hide(text)


def whole(address: str) -> str:
    """The address with its password, where it was written without: MLFLOW_TRACKING_URI if it is this one, or MLFLOW_TRACKING_PASSWORD.

    Raises ValueError, saying so, where neither is set.
    """
    if MASK not in address:
        return address
    known, password = os.environ.get("MLFLOW_TRACKING_URI", ""), os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    if hide(known) == address:
        return known
    if password:
        return address.replace(MASK, quote(password, safe=""))
    raise ValueError(
        f"the password of {address} is not kept with runs; it is taken from MLFLOW_TRACKING_PASSWORD, "
        "or from MLFLOW_TRACKING_URI if that is the whole address"
    )
