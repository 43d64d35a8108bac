"""The fixed list of boundary pairs behind ``disagg-train bench boundary --suite``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from disagg_train.bench.boundary import BoundaryResult, parse_layout, run_boundary

if TYPE_CHECKING:
    from rich.table import Table

PAIRS: tuple[tuple[str, str], ...] = (
    ("dp=2", "dp=2"),
    ("dp=3", "dp=2"),
    ("dp=2", "tp=2"),
    ("dp=2", "tp=2,sp=true"),
    ("tp=2", "tp=2"),
    ("tp=2", "tp=2,sp=true"),
    ("tp=2,sp=true", "tp=2,sp=true"),
    ("dp=2", "cp=2"),
    ("tp=2", "cp=2"),
    ("cp=2", "cp=2"),
    ("cp=2", "tp=2,sp=true"),
    ("tp=2,cp=2", "tp=2,dp=2"),
)
"""Source and destination of every pair; the last runs eight processes, the others four or five."""


def run_suite(num_tokens: int, hidden_size: int, rounds: int) -> Iterator[BoundaryResult]:
    """Measure every pair in turn, and yield each result when it is there.

    Args:
        num_tokens: rows that cross in each direction.
        hidden_size: fp32 values per row.
        rounds: timed rounds of each pair.

    Raises:
        RankError: a rank died, hung or raised.
    """
    for source, destination in PAIRS:
        yield run_boundary(
            parse_layout(source), parse_layout(destination), num_tokens, hidden_size, rounds
        )


def suite_table() -> "Table":
    """Return the table of results, still without rows; ``table_row`` makes them."""
    from rich.table import Table

    table = Table(title="boundary, forward and backward together, in ms; (bars)")
    table.add_column("pair", no_wrap=True)
    for heading in ("ours", "Megatron", "raw", "ours/\nMegatron", "ours/\nraw"):
        table.add_column(heading, justify="right")
    table.add_column("wire/\npayload", justify="right")
    table.add_column("busiest rank\n(least)", justify="right")
    return table


def table_row(result: BoundaryResult) -> tuple[str, ...]:
    """Return a result as the cells of ``suite_table``."""
    wire = result.wire_over_payload_forward, result.wire_over_payload_backward
    return (
        f"{_short(result.source)} -> {_short(result.destination)}",
        f"{result.ours_ms:.1f}",
        "refused" if result.megatron_ms is None else f"{result.megatron_ms:.1f}",
        f"{result.raw_ms:.1f}",
        _ratio_cell(result.ratio_megatron, result.megatron_bar),
        _ratio_cell(result.ratio_raw, result.raw_bar),
        f"{wire[0]:.2f} {wire[1]:.2f}",
        f"{result.max_rank_wire_over_payload:.3f} ({result.max_rank_lower_bound:.3f})",
    )


def _short(layout: str) -> str:
    """Return ``tp=2,sp=true`` as ``tp2 sp``: a row must fit a terminal."""
    return layout.replace("=true", "").replace("=", "").replace(",", " ")


def refusals(results: list[BoundaryResult]) -> list[str]:
    """Return what Megatron's bridge said of the pairs that it refuses, one line each."""
    return [
        f"Megatron refuses {result.source} -> {result.destination}: {result.megatron_refusal}"
        for result in results
        if result.megatron_refusal
    ]


def _ratio_cell(ratio: float | None, bar: float | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio:.2f}" if bar is None else f"{ratio:.2f} (<= {bar:g})"
