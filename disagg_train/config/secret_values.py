"""Which plain values look like secrets, so that none comes to stand in a file or a manifest."""

import contextlib
import os
import re
from collections.abc import Mapping
from typing import Any

from disagg_train.errors import ConfigError

_NAMES = {"TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "KEY", "APIKEY"}
_NAMES |= {"TOKENS", "SECRETS", "PASSWORDS", "KEYS"}
_PLACES = {"FILE", "PATH", "DIR", "FOLDER", "ID", "NAME"}
"""Last words of names whose values only say where or which a secret is."""

_CREDENTIAL = re.compile(
    r"(?i)token|((.*_)?(pass(word|wd|phrase)|secrets?|credentials?"
    r"|(api|access|private|secret)_?key|(access|auth|api|bearer|hf|hub)_?token))"
)
"""Names of options that hold a secret whatever it looks like; not `image_token`, not `text_key`."""
_OPTIONS = re.compile(r"(data|modules\.[^.]+)\.options\.")

_IN_ADDRESS = r"://[^/\s:@]*:[^/\s@]+@"
_PRIVATE_KEY = "-----BEGIN [A-Z ]*PRIVATE KEY"
_TOKEN = (
    r"(?<![A-Za-z0-9])(hf_\w{16,}|sk-[\w-]{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}"
    r"|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|nvapi-[\w-]{16,}|A[KS]IA[0-9A-Z]{16}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.)"
)
_ISSUED = re.compile(f"{_PRIVATE_KEY}|{_IN_ADDRESS}|{_TOKEN}")
"""Begins of the tokens of well-known issuers, private keys, and addresses with a password."""
_WHOLE = re.compile(rf"(?s:{_PRIVATE_KEY}.*)|{_TOKEN}[\w.+/=-]*|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")

MASK = "***"
"""What stands in a secret's place."""
_SHORTEST = 8
"""Characters of a secret that is looked for in texts; shorter ones are in many words."""
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


def masked(text: str) -> str:
    """Return a text without the secrets of this process's environment, nor any of known forms."""
    secrets = {value.strip() for name, value in os.environ.items() if is_secret_name(name)}
    for value in sorted(secrets, key=len, reverse=True):  # one may begin as another
        if len(value) >= _SHORTEST:
            text = text.replace(value, MASK)
    return _WHOLE.sub(MASK, text)


def mask_error(error: BaseException | None) -> None:
    """Mask the texts of an error, and of those that it came from, where they are."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        with contextlib.suppress(Exception):  # some errors cannot be changed
            error.args = tuple(masked(a) if isinstance(a, str) else a for a in error.args)
            for name in ("filename", "filename2"):  # an OSError's text has them beside its args
                if isinstance(path := getattr(error, name, None), str):
                    setattr(error, name, masked(path))
        error = error.__cause__ or error.__context__


def masked_content(content: Any) -> Any:
    """Return plain data with all texts masked."""
    if isinstance(content, Mapping):
        return {key: masked_content(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [masked_content(value) for value in content]
    return masked(content) if isinstance(content, str) else content


def check_no_secret(content: Any, path: str = "") -> None:
    """Refuse a job file with a secret in it: it is copied to many places that many people read.

    Args:
        content: of the job file, or of a part of it.
        path: of that part.

    Raises:
        ConfigError: naming the field, not its value.
    """
    if isinstance(content, Mapping):
        for key, value in content.items():
            below = f"{path}.{key}" if path else str(key)
            if _is_credential(below, value):
                raise _refusal(below)
            check_no_secret(value, below)
    elif isinstance(content, list | tuple):
        for number, value in enumerate(content):
            check_no_secret(value, f"{path}.{number}")
    elif isinstance(content, str) and is_issued_secret(content):
        raise _refusal(path)


def _is_credential(path: str, value: Any) -> bool:
    """Whether an option of a user's own class has a secret's name; other fields' names are ours."""
    if not _OPTIONS.match(path) or not isinstance(value, str) or not value:
        return False
    return _CREDENTIAL.fullmatch(path.rpartition(".")[2]) is not None


def _refusal(path: str) -> ConfigError:
    return ConfigError(
        f"{path} holds a token or a password, which must not stand in a job file: every run and "
        f"checkpoint has a copy. Set an environment variable and have it read there; on "
        f"Kubernetes make a Secret and name it in kubernetes.env_from_secrets"
    )


def looks_secret(name: str, value: str) -> bool:
    """Whether an environment variable holds a secret, as far as name and value tell."""
    return is_secret_name(name) or is_issued_secret(value) or is_random(value)
