"""Bytes as tokens, and three marks beside them."""

from collections.abc import Sequence

PADDING, START, END = 256, 257, 258


def encode(text: str) -> list[int]:
    """Return the UTF-8 bytes of ``text``."""
    return list(text.encode())


def decode(token_ids: Sequence[int]) -> str:
    """Return the text before the first END; other marks are dropped."""
    ids = list(token_ids)
    if END in ids:
        ids = ids[: ids.index(END)]
    return bytes(i for i in ids if i < 256).decode(errors="replace")
