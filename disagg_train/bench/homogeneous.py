"""The paper's baseline: one layout for all modules, with the encoder on the LLM's first stage.

Its authors' benchmark says so: the encoder has the LLM's tp, cp and dp, and lives on pipeline
stage 0; stages may have different numbers of the LLM's layers, so that the first one may have
fewer. The planner has no such layout (its modules share all of their ranks, or none), so its
candidates are made here, with the same costs, memory and simulator as all others. Their encoder has
no sequence parallelism, as the authors' has none, unless asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from disagg_train.bench.paper_cases import Case
from disagg_train.bench.spreads import ENCODER
from disagg_train.config.base import divisors
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.config.modules import ParallelConfig, Recompute
from disagg_train.errors import PlanError
from disagg_train.planner.analytic_costs import costs_by_size
from disagg_train.planner.machine import Machine
from disagg_train.planner.memory import module_state_bytes, passing_bytes_per_token
from disagg_train.planner.sample_costs import Floats, SampleTable, StageCost
from disagg_train.planner.stage_parts import VALUE_BYTES
from disagg_train.schedule.build import training_schedule
from disagg_train.schedule.costs import CostModel, TransferCost
from disagg_train.schedule.graph import Edge, StageGraph, StageNode, stage_name
from disagg_train.schedule.ops import OpKind
from disagg_train.schedule.simulate import simulate

_PASSES = (OpKind.FORWARD, OpKind.BACKWARD)
_ONCE = (OpKind.GRAD_SYNC, OpKind.OPTIMIZER_STEP)
_MOST_STAGES, _MOST_CONTEXT, _MOST_SAMPLES = 16, 64, 16
_SIMULATED = 12
_RECOMPUTED: tuple[Recompute, ...] = ("none", "full")


@dataclass(frozen=True)
class Layout:
    """One layout for all modules.

    Args:
        tp: of both modules.
        cp: of both.
        pp: stages.
        dp: of both.
        samples: of a microbatch of one dp rank.
        encoder_recompute: what the encoder's backward computes again.
        language_recompute: the same of the LLM's.
        encoder_sp: whether the encoder's tp ranks share tokens between its matrices, too.
    """

    tp: int
    cp: int
    pp: int
    dp: int
    samples: int
    encoder_recompute: Recompute = "none"
    language_recompute: Recompute = "none"
    encoder_sp: bool = False

    @property
    def degrees(self) -> ParallelConfig:
        """Degrees without the stages."""
        return ParallelConfig(tp=self.tp, sp=self.tp > 1, cp=self.cp, dp=self.dp)


@dataclass(frozen=True)
class Homogeneous:
    """What a layout takes.

    Args:
        layout: the layout.
        layers: of the LLM, on each stage.
        step_s: simulated.
        num_bytes: on the rank that holds most.
    """

    layout: Layout
    layers: tuple[int, ...]
    step_s: float
    num_bytes: float

    def __str__(self) -> str:
        """Return it for people."""
        own = self.layout
        cut = {"tp": own.tp, "cp": own.cp, "pp": own.pp, "dp": own.dp}
        degrees = " ".join(f"{name}{n}" for name, n in cut.items() if n > 1)
        again = {ENCODER: own.encoder_recompute, LANGUAGE: own.language_recompute}
        recomputed = [name for name, what in again.items() if what != "none"]
        uneven = f", {self.layers[0]} of {sum(self.layers)} layers first" if own.pp > 1 else ""
        return degrees + uneven + (f", recomputed: {', '.join(recomputed)}" if recomputed else "")


def best_homogeneous(
    case: Case, job: JobConfig, machine: Machine, *, encoder_sp: bool = False
) -> Homogeneous:
    """Return the quickest layout that fits.

    Args:
        case: the kind of job.
        job: made of it.
        machine: what a rank achieves.
        encoder_sp: whether the encoder has sequence parallelism.

    Raises:
        PlanError: none fits.
    """
    layouts = (replace(each, encoder_sp=encoder_sp) for each in _layouts(case, job))
    every = [Stages(case, job, machine, layout) for layout in layouts]
    fitting = sorted((s for s in every if s.surely_fits), key=lambda each: each.rough_s)
    if not fitting:
        raise PlanError(f"{job.name}: no layout for all modules fits {case.gpus} GPUs")
    return min((s.simulated() for s in fitting[:_SIMULATED]), key=lambda each: each.step_s)


def _layouts(case: Case, job: JobConfig) -> Iterator[Layout]:
    """Return every layout whose degrees divide what they cut, tp inside a node."""
    encoder: Any = job.modules[ENCODER]
    language = job.language.model
    heads = encoder.model.num_attention_heads, language.num_attention_heads
    degrees = [tp for tp in divisors(8) if all(number % tp == 0 for number in heads)]
    contexts = [cp for cp in divisors(_MOST_CONTEXT) if cp >= case.least_cp]
    stages = range(1, min(_MOST_STAGES, language.num_layers) + 1)
    for tp, cp, pp in product(degrees, contexts, stages):
        dp, rest = divmod(case.gpus, tp * cp * pp)
        if rest or not dp or case.samples % dp:
            continue
        for samples in divisors(case.samples // dp):
            if samples <= _MOST_SAMPLES:
                for encoder_again, again in product(_RECOMPUTED, repeat=2):
                    yield Layout(tp, cp, pp, dp, samples, encoder_again, again)


@dataclass(frozen=True)
class _Stage:
    """What a part of the model takes on a rank; several make a pipeline stage.

    Args:
        passes_s: seconds of a microbatch, by kind of op.
        once_s: seconds of a step, by kind of op.
        kept_bytes: of a microbatch, for its backward.
        state_bytes: weights, gradients, the optimizer's state.
        passing_bytes: what lives inside one op.
    """

    passes_s: Mapping[OpKind, float]
    once_s: Mapping[OpKind, float]
    kept_bytes: float
    state_bytes: float
    passing_bytes: float

    def __add__(self, other: "_Stage") -> "_Stage":
        return _Stage(
            {kind: self.passes_s[kind] + other.passes_s[kind] for kind in _PASSES},
            {kind: self.once_s[kind] + other.once_s[kind] for kind in _ONCE},
            self.kept_bytes + other.kept_bytes,
            self.state_bytes + other.state_bytes,
            max(self.passing_bytes, other.passing_bytes),
        )

    def __mul__(self, times: int) -> "_Stage":
        return _Stage(
            {kind: times * each for kind, each in self.passes_s.items()},
            {kind: times * each for kind, each in self.once_s.items()},
            times * self.kept_bytes,
            times * self.state_bytes,
            self.passing_bytes,
        )

    @property
    def microbatch_s(self) -> float:
        """Seconds of a microbatch, to and fro."""
        return sum(self.passes_s.values())


def _parts(case: Case, job: JobConfig, machine: Machine, layout: Layout) -> "list[_Stage]":
    """Return the encoder, and an LLM of three layers: the first, an inner one, the last."""
    variant = _variant(job, layout)
    costs = costs_by_size(variant, machine)
    table = SampleTable.of(case.batch()[: layout.samples], [ENCODER])
    passing = passing_bytes_per_token(variant)
    found = []
    for name in (ENCODER, LANGUAGE):
        tokens_1, squares_1 = (
            kind[name].sum(keepdims=True) for kind in (table.tokens, table.squares)
        )
        tokens = float(tokens_1[0])
        state = module_state_bytes(variant, name)
        for at, cost in enumerate(costs.modules[name].stages):
            found.append(
                _Stage(
                    {kind: _seconds(cost, kind, tokens_1, squares_1) for kind in _PASSES},
                    {kind: cost.once_s[kind] for kind in _ONCE},
                    cost.bytes_per_token * tokens,
                    state[at],
                    passing[name][at] * tokens,
                )
            )
    return found


def _seconds(cost: StageCost, kind: OpKind, tokens_1: Floats, squares_1: Floats) -> float:
    return float(cost.passes[kind].of_lanes(tokens_1, squares_1)[0])


def _variant(job: JobConfig, layout: Layout) -> JobConfig:
    """Return the job in a layout, with as many layers of the LLM as have different costs."""
    degrees, language = layout.degrees, job.language
    three = {"model": language.model.model_copy(update={"num_layers": 3})}
    changes: dict[str, dict[str, Any]] = {
        ENCODER: {
            "parallel": degrees.model_copy(update={"sp": layout.encoder_sp}),
            "recompute": layout.encoder_recompute,
        },
        LANGUAGE: {
            "parallel": degrees.model_copy(update={"pp": 3}),
            "recompute": layout.language_recompute,
            **three,
        },
    }
    modules = {name: job.modules[name].model_copy(update=own) for name, own in changes.items()}
    return job.model_copy(update={"modules": modules})


class Stages:
    """The stages of a layout: the encoder on the first, the LLM's layers where they are quickest.

    Args:
        case: the kind of job.
        job: made of it.
        machine: what a rank achieves.
        layout: the layout.
    """

    def __init__(self, case: Case, job: JobConfig, machine: Machine, layout: Layout) -> None:
        self.layout, self._machine = layout, machine
        self.microbatches = case.samples // (layout.dp * layout.samples)
        encoder, first, inner, last = _parts(case, job, machine, layout)
        self.layers = (2,) if layout.pp == 1 else (1,) * layout.pp
        self.stages = [first, *[inner] * (layout.pp - 2), last][: layout.pp]
        if layout.pp == 1:
            self.stages = [first + last]
        self.stages[0] += encoder
        self._add_layers(inner, job.language.model.num_layers - sum(self.layers))
        shared = layout.cp * layout.tp
        row_bytes = job.language.model.hidden_size * VALUE_BYTES[job.train.precision]
        self._message_bytes = layout.samples * case.sequence_tokens * row_bytes / shared

    def _add_layers(self, inner: _Stage, count: int) -> None:
        """Give every further layer to the stage that is quickest with it."""
        layers = list(self.layers)
        for _ in range(count):
            at = min(range(len(layers)), key=lambda each: self.stages[each].microbatch_s)
            self.stages[at] += inner
            layers[at] += 1
        self.layers = tuple(layers)

    @property
    def surely_fits(self) -> bool:
        """Whether each stage holds its share of microbatches under way."""
        stages, count = self.stages, self.microbatches
        return all(
            self._held(stage) + stage.kept_bytes * min(count, len(stages) - at)
            <= self._machine.memory_bytes
            for at, stage in enumerate(stages)
        )

    @property
    def rough_s(self) -> float:
        """About how long a step takes."""
        each_s = [stage.microbatch_s for stage in self.stages]
        once_s = max(sum(stage.once_s.values()) for stage in self.stages)
        return sum(each_s) + (self.microbatches - 1) * max(each_s) + once_s

    def _held(self, stage: _Stage) -> float:
        return stage.state_bytes + stage.passing_bytes

    def simulated(self) -> Homogeneous:
        """Return what a step takes."""
        count = len(self.stages)
        names = [stage_name(LANGUAGE, at, count) for at in range(count)]
        nodes = {name: StageNode(name, "all", ((at,),)) for at, name in enumerate(names)}
        edges = tuple(Edge(*pair) for pair in zip(names, names[1:], strict=False))
        graph = StageGraph(nodes, edges)
        schedule = training_schedule(graph, self.microbatches, self.microbatches)
        step = simulate(schedule, graph, self._costs(names, edges))
        held = max(
            peak + self._held(stage)
            for peak, stage in zip(step.peak_bytes, self.stages, strict=True)
        )
        return Homogeneous(self.layout, self.layers, step.step_time_s, held)

    def _costs(self, names: Sequence[str], edges: Sequence[Edge]) -> CostModel:
        named = list(zip(names, self.stages, strict=True))
        seconds = {
            (kind, name): (each_s,)
            for name, stage in named
            for kind, each_s in (*stage.passes_s.items(), *stage.once_s.items())
        }
        own, machine = self.layout, self._machine
        speed = machine.hop_bytes_per_s(own.tp * own.cp * own.dp, 2)
        transfer = TransferCost((machine.latency_s,), (self._message_bytes,), speed)
        sends = (OpKind.SEND_FORWARD, OpKind.SEND_BACKWARD)
        transfers = {(kind, edge.name): transfer for edge in edges for kind in sends}
        kept = {name: (stage.kept_bytes,) for name, stage in named}
        return CostModel(seconds, transfers, kept)
