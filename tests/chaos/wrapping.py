"""Calls that are put before and after methods of the product, for the life of a process."""

from collections.abc import Callable
from typing import Any


def before(owner: Any, name: str, call: Callable[..., None]) -> None:
    """Have ``call`` called with the arguments of a method, or function, before it."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def after(owner: Any, name: str, call: Callable[..., None]) -> None:
    """Have ``call`` called with the arguments of a method, or function, after it."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        call(*args, **kwargs)
        return result

    setattr(owner, name, wrapped)
