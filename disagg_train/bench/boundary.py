"""``disagg-train bench boundary``: our boundary, Megatron's, and raw messages, in one run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from disagg_train.bench.case import BoundaryCase
from disagg_train.bench.machine import commit, hardware
from disagg_train.bench.processes import Processes
from disagg_train.bench.statistics import median_ms, ratio
from disagg_train.config.modules import ParallelConfig
from disagg_train.errors import ConfigError

_MOST_RANKS = 8
_DEADLINE_S = 180.0
_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True)
class BoundaryResult:
    """Times of one forward and one backward together, in milliseconds; medians over rounds.

    A round's time is the slowest rank's from a common start. Contestants alternate within
    the same processes.

    Args:
        ours_ms: this project's boundary, gathers over replicas included.
        megatron_ms: megatron-core's ``BridgeCommunicator``; None where it refuses the pair.
            Under sequence parallelism it still moves whole tensors.
        raw_ms: one ``torch.distributed`` send and receive per direction of the same bytes:
            between one rank of either side, or, where no side has replicas, divided over
            parallel pairs of ranks. Like ours it receives into new memory; ``raw_reused``
            among the samples is the same into one buffer again and again.
        ratio_megatron: ours / Megatron's.
        ratio_raw: ours / raw.
        wire_over_payload_forward: bytes that cross between the sides / bytes of all tokens.
        wire_over_payload_backward: the same of the gradients.
        max_rank_wire_over_payload: bytes that the busiest rank sends or receives across in
            one direction / bytes of all tokens.
        rounds: timed rounds.
        hardware: the machine.
        commit: of the checkout.
        samples_ms: every round's time, by contestant and direction (``ours_forward``).
    """

    ours_ms: float
    megatron_ms: float | None
    raw_ms: float
    ratio_megatron: float | None
    ratio_raw: float | None
    wire_over_payload_forward: float
    wire_over_payload_backward: float
    max_rank_wire_over_payload: float
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


def run_boundary(
    source: ParallelConfig,
    destination: ParallelConfig,
    num_tokens: int,
    hidden_size: int,
    rounds: int = 20,
) -> BoundaryResult:
    """Measure one pair of layouts on disjoint ranks of this machine, over gloo.

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

    case = BoundaryCase(source, destination, num_tokens, hidden_size)
    _check(case, rounds)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    setups = [
        BoundarySetup(case, store.port, place, _DEADLINE_S) for place in range(case.num_ranks)
    ]
    with Processes(BoundaryRank, setups, _DEADLINE_S) as processes:
        answers = processes.run(rounds)
    sent = [answer.sent_bytes for answer in answers]
    received = [answer.received_bytes for answer in answers]
    return _result(case, rounds, answers[0].samples_s, sent, received)


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
    case: BoundaryCase,
    rounds: int,
    samples_s: Mapping[str, Sequence[float]],
    sent: Sequence[tuple[int, int]],
    received: Sequence[tuple[int, int]],
) -> BoundaryResult:
    payload = case.payload_bytes
    ours_ms, raw_ms = _both_ms(samples_s, "ours"), _both_ms(samples_s, "raw")
    megatron_ms = _both_ms(samples_s, "megatron")
    assert ours_ms is not None and raw_ms is not None
    return BoundaryResult(
        ours_ms=ours_ms,
        megatron_ms=megatron_ms,
        raw_ms=raw_ms,
        ratio_megatron=ratio(ours_ms, megatron_ms),
        ratio_raw=ratio(ours_ms, raw_ms),
        wire_over_payload_forward=sum(forward for forward, _ in sent) / payload,
        wire_over_payload_backward=sum(backward for _, backward in sent) / payload,
        max_rank_wire_over_payload=max(map(max, [*sent, *received])) / payload,
        rounds=rounds,
        hardware=hardware(),
        commit=commit(),
        samples_ms={name: [1e3 * s for s in times] for name, times in samples_s.items()},
    )


def _both_ms(samples_s: Mapping[str, Sequence[float]], contestant: str) -> float | None:
    """Return the median over rounds of forward plus backward, None for who did not run."""
    if f"{contestant}_forward" not in samples_s:
        return None
    forward, backward = samples_s[f"{contestant}_forward"], samples_s[f"{contestant}_backward"]
    return median_ms([f + b for f, b in zip(forward, backward, strict=True)])
