"""Which plain values look like secrets, so that none comes to stand in a file or a manifest."""

import re
from collections.abc import Mapping
from typing import Any

_NAMES = {"TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "KEY", "APIKEY"}
_NAMES |= {"TOKENS", "SECRETS", "PASSWORDS", "KEYS"}
_PLACES = {"FILE", "PATH", "DIR", "FOLDER", "ID", "NAME"}
"""Last words of names whose values only say where or which a secret is."""

_ISSUED = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY|://[^/\s:@]*:[^/\s@]+@"
    r"|(?<![A-Za-z0-9])(hf_\w{16,}|sk-[\w-]{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}"
    r"|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|nvapi-[\w-]{16,}|A[KS]IA[0-9A-Z]{16}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.)"
)
"""Begins of the tokens of well-known issuers, private keys, and addresses with a password."""

_HEX = re.compile(r"[0-9a-fA-F]{32,}")
_MIXED = re.compile(r"(?=.*[a-z])(?=.*[A-Z])(?=.*\d)[A-Za-z0-9+_-]{32,}={0,2}")


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name holds a secret."""
    *_, last = words = name.upper().split("_")
    return last not in _PLACES and bool(_NAMES & set(words))


def is_issued_secret(text: str) -> bool:
    """Whether a text holds a token of a well-known issuer, a private key or a password."""
    return _ISSUED.search(text) is not None


def is_random(value: str) -> bool:
    """Whether a value is nothing but many random letters and digits, as tokens are."""
    return bool(_HEX.fullmatch(value) or _MIXED.fullmatch(value))


def field_of_issued_secret(node: Any, path: str = "") -> str | None:
    """Return the path of a field, as `a.b.0`, whose text holds an issued secret; None if none does.

    Args:
        node: content of a job file, or of a part of it.
        path: of that part.
    """
    if isinstance(node, str):
        return path if is_issued_secret(node) else None
    if isinstance(node, Mapping):
        items = [(str(key), value) for key, value in node.items()]
    elif isinstance(node, list | tuple):
        items = [(str(number), value) for number, value in enumerate(node)]
    else:
        return None
    found = (field_of_issued_secret(value, f"{path}.{key}".lstrip(".")) for key, value in items)
    return next(filter(None, found), None)
