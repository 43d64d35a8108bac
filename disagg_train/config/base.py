"""What every part of the job file shares: frozen, unknown keys refused, fields documented."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of the job file's parts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def divisors(number: int) -> list[int]:
    """Return the divisors of a positive number, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]
