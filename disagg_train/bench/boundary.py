"""``disagg-train bench boundary``: our boundary, Megatron's, and raw messages, in one run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from disagg_train.bench.case import BoundaryCase
from disagg_train.bench.machine import commit, hardware
from disagg_train.bench.processes import Processes
from disagg_train.bench.statistics import median_ms, ratio
from disagg_train.config.modules import ParallelConfig
from disagg_train.errors import ConfigError

if TYPE_CHECKING:
    from disagg_train.bench.boundary_rank import BoundaryTimes

_MOST_RANKS = 8
_DEADLINE_S = 180.0
_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True)
class BoundaryResult:
    """Times of one forward and one backward together, in milliseconds; medians over rounds.

    A round's time is the slowest rank's from a common start. Contestants alternate within
    the same processes. Ours and raw re-use their memory; Megatron's
    bridge makes new memory for every microbatch, as it is released.

    Args:
        source: layout of the source, as ``parse_layout`` reads it.
        destination: layout of the destination.
        num_tokens: rows that cross in each direction.
        hidden_size: fp32 values per row.
        ours_ms: this project's boundary, gathers over replicas included.
        megatron_ms: megatron-core's ``BridgeCommunicator``; None where it refuses the pair.
            Under sequence parallelism it still moves whole tensors.
        megatron_refusal: why it refuses the pair, in its own words; None where it does not.
        raw_ms: one ``torch.distributed`` send and receive per direction of the same bytes:
            between one rank of either side, or, where no side has replicas, divided over
            parallel pairs of ranks.
        ratio_megatron: ours / Megatron's.
        megatron_bar: the most that it may be; None where there is no bar, or a refusal.
        ratio_raw: ours / raw.
        raw_bar: the most that it may be; None where there is no bar.
        wire_over_payload_forward: bytes that cross between the sides / bytes of all tokens.
        wire_over_payload_backward: the same of the gradients.
        max_rank_wire_over_payload: bytes that the busiest rank sends or receives across in
            one direction / bytes of all tokens.
        max_rank_lower_bound: the least that any routes can make of it; whole tokens may
            add up to one token.
        rounds: timed rounds.
        hardware: the machine.
        commit: of the checkout.
        samples_ms: every round's time, by contestant and direction (``ours_forward``).
    """

    source: str
    destination: str
    num_tokens: int
    hidden_size: int
    ours_ms: float
    megatron_ms: float | None
    megatron_refusal: str | None
    raw_ms: float
    ratio_megatron: float | None
    megatron_bar: float | None
    ratio_raw: float
    raw_bar: float | None
    wire_over_payload_forward: float
    wire_over_payload_backward: float
    max_rank_wire_over_payload: float
    max_rank_lower_bound: float
    rounds: int
    hardware: Mapping[str, str | int]
    commit: str
    samples_ms: Mapping[str, Sequence[float]]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return asdict(self)


def parse_layout(text: str) -> ParallelConfig:
    """Return the layout that ``tp=2,dp=1,sp=true`` names; what is left out is 1, or false.

    Raises:
        ConfigError: an axis is unknown, a value is no number, or the layout is not supported.
    """
    return _layout(text, [_parse_axis(part.strip(), text) for part in text.split(",")])


def _parse_axis(part: str, text: str) -> tuple[str, int | bool]:
    axis, equals, value = (piece.strip() for piece in part.partition("="))
    known = list(ParallelConfig.model_fields)
    if not equals or axis not in known:
        raise ConfigError(
            f"layout {text!r}: {part!r} names no axis; write axis=degree with an axis of "
            f"{known}, for example tp=2,dp=1,sp=true"
        )
    if axis == "sp":
        if value.lower() not in _BOOLEANS:
            raise ConfigError(f"layout {text!r}: sp={value} is neither true nor false")
        return axis, _BOOLEANS[value.lower()]
    if not value.isdecimal():
        raise ConfigError(f"layout {text!r}: {axis}={value} is no degree; use a number from 1 up")
    return axis, int(value)


def _layout(text: str, axes: Sequence[tuple[str, int | bool]]) -> ParallelConfig:
    names = [axis for axis, _ in axes]
    twice = sorted({axis for axis in names if names.count(axis) > 1})
    if twice:
        raise ConfigError(f"layout {text!r} names {twice} twice; name each axis once")
    try:
        return ParallelConfig.model_validate(dict(axes))
    except ValidationError as error:
        reasons = "; ".join(_reason(dict(found)) for found in error.errors())
        raise ConfigError(f"layout {text!r}: {reasons}") from None


def _reason(found: dict[str, Any]) -> str:
    if isinstance(cause := found.get("ctx", {}).get("error"), ConfigError):
        return str(cause)
    axis = ".".join(str(part) for part in found["loc"])
    return f"{axis}={found['input']}: {found['msg']}"


def layout_text(parallel: ParallelConfig) -> str:
    """Return the text that names a layout: ``tp=2,cp=2``; axes of one rank are left out."""
    degrees = [f"{axis}={getattr(parallel, axis)}" for axis in ("tp", "cp", "pp", "dp")]
    axes = [text for text in degrees if not text.endswith("=1")]
    return ",".join(axes + ["sp=true"] * parallel.sequence_parallel) or "dp=1"


def run_boundary(
    source: ParallelConfig,
    destination: ParallelConfig,
    num_tokens: int,
    hidden_size: int,
    rounds: int = 20,
) -> BoundaryResult:
    """Measure one pair of layouts on disjoint ranks of this machine, over gloo.

    Of a module with pipeline stages only the one at the boundary is run.

    Args:
        source: the encoder's layout.
        destination: the LLM's.
        num_tokens: rows that cross in each direction.
        hidden_size: fp32 values per row.
        rounds: timed rounds, after a warm-up.

    Raises:
        ConfigError: there are more ranks than this machine is asked to hold.
        RankError: a rank died, hung or raised.
    """
    from torch.distributed import TCPStore

    from disagg_train.bench.boundary_rank import BoundaryRank, BoundarySetup

    case = BoundaryCase.between(source, destination, num_tokens, hidden_size)
    _check(case, rounds)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    setups = [
        BoundarySetup(case, store.port, place, _DEADLINE_S) for place in range(case.num_ranks)
    ]
    with Processes(BoundaryRank, setups, _DEADLINE_S) as processes:
        answers = processes.run(rounds)
    names = layout_text(source), layout_text(destination)
    return _result(case, names, rounds, answers)


def _check(case: BoundaryCase, rounds: int) -> None:
    if case.num_ranks > _MOST_RANKS:
        raise ConfigError(
            f"{case.source.num_ranks} source ranks and {case.destination.num_ranks} destination "
            f"ranks are {case.num_ranks} processes; use at most {_MOST_RANKS}"
        )
    if case.num_tokens < _MOST_RANKS or case.hidden_size < 1 or rounds < 1:
        raise ConfigError(
            f"tokens={case.num_tokens}, hidden={case.hidden_size}, rounds={rounds}: use at least "
            f"{_MOST_RANKS} tokens of 1 value and 1 round"
        )


def _result(
    case: BoundaryCase, names: tuple[str, str], rounds: int, answers: "Sequence[BoundaryTimes]"
) -> BoundaryResult:
    samples_s, refusal = answers[0].samples_s, answers[0].megatron_refusal
    payload = case.payload_bytes
    sent, received = [a.sent_bytes for a in answers], [a.received_bytes for a in answers]
    ours_ms, raw_ms = _both_ms(samples_s, "ours"), _both_ms(samples_s, "raw")
    megatron_ms = None if refusal else _both_ms(samples_s, "megatron")
    return BoundaryResult(
        source=names[0],
        destination=names[1],
        num_tokens=case.num_tokens,
        hidden_size=case.hidden_size,
        ours_ms=ours_ms,
        megatron_ms=megatron_ms,
        megatron_refusal=refusal or None,
        raw_ms=raw_ms,
        ratio_megatron=ratio(ours_ms, megatron_ms),
        megatron_bar=None if refusal else case.megatron_bar,
        ratio_raw=ours_ms / raw_ms,
        raw_bar=case.raw_bar,
        wire_over_payload_forward=sum(forward for forward, _ in sent) / payload,
        wire_over_payload_backward=sum(backward for _, backward in sent) / payload,
        max_rank_wire_over_payload=max(map(max, [*sent, *received])) / payload,
        max_rank_lower_bound=case.max_rank_lower_bound,
        rounds=rounds,
        hardware=hardware(),
        commit=commit(),
        samples_ms={name: [1e3 * s for s in times] for name, times in samples_s.items()},
    )


def _both_ms(samples_s: Mapping[str, Sequence[float]], contestant: str) -> float:
    """Return the median over rounds of forward plus backward."""
    forward, backward = samples_s[f"{contestant}_forward"], samples_s[f"{contestant}_backward"]
    return median_ms([f + b for f, b in zip(forward, backward, strict=True)])
