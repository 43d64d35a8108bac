"""The job file. Every rule that spans several of its parts is checked here."""

from math import gcd
from typing import Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from disagg_train.config.base import Config, divisors
from disagg_train.config.environment import Environment
from disagg_train.config.groups import GroupConfig
from disagg_train.config.kubernetes import KubernetesConfig
from disagg_train.config.modules import AnyModule, EncoderModule, GptModule, TransformerModule
from disagg_train.config.planned import PlannedConfig
from disagg_train.config.sinks import SinksConfig
from disagg_train.config.survival import CheckpointConfig, RecoveryConfig
from disagg_train.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]

Balance = Literal["none", "encoder", "llm", "both"]
"""Whose microbatches are given equal work."""

LANGUAGE = "language"
"""Name of the module that is the LLM."""


class DataConfig(Config):
    """Where samples come from."""

    kind: str = "digits"
    """`digits`, or the import path of a source of one's own, as `package.module:Class`."""
    options: dict[str, Any] = {}
    """Keyword arguments of the source."""
    on_bad_sample: Literal["fail", "skip"] = "fail"
    """What a sample that cannot be used does (a truncated image, a file gone, too many tokens):
    end the run with its id and the reason, or be taken out before its step, counted and listed."""
    max_bad_samples: NonNegativeInt = 100
    """With `skip`: more bad samples than this end the run."""
    workers: PositiveInt = 2
    """Threads on which a rank decodes the next step's samples."""


class OptimizerConfig(Config):
    """Adam with decoupled weight decay, warm-up and a cosine."""

    lr: PositiveFloat
    """Highest learning rate."""
    min_lr_fraction: float = Field(default=0.1, ge=0.0, le=1.0)
    """Learning rate of the last step, as a fraction of `lr`."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises from 0 to `lr`."""
    clip_grad: NonNegativeFloat = 1.0
    """Largest norm of the gradient over all modules; 0 turns clipping off."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of matrices; biases and norms have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of Adam's two averages."""
    eps: PositiveFloat = 1e-8
    """Adam's epsilon."""


class LossScaleConfig(Config):
    """What the loss is multiplied with, so that gradients do not vanish in fp16."""

    initial: PositiveFloat = 1024.0
    """Scale of the first step, of the loss summed over tokens; halved whenever a gradient is
    not finite, and all modules then skip the step."""
    growth_interval: PositiveInt = 1000
    """Steps without a skip after which the scale doubles."""


class EvaluationConfig(Config):
    """Held-out evaluation during and after training."""

    every_steps: NonNegativeInt = 0
    """Evaluate every so many steps; 0 means only at the end."""
    samples: NonNegativeInt = 64
    """Held-out samples per evaluation; 0 turns evaluation off."""


class TrainConfig(Config):
    """The training loop."""

    steps: PositiveInt
    """Number of steps."""
    global_batch: PositiveInt
    """Samples per step, over all replicas."""
    microbatches: PositiveInt = 1
    """Parts that the global batch passes through the modules in."""
    tokens_per_microbatch: PositiveInt | None = None
    """Most positions, padding included, of the LLM's stream in a microbatch of a dp rank. A step
    then takes as many samples as fit, `global_batch` at most; no limit where not given."""
    window: PositiveInt | None = None
    """Microbatches per window of encoders colocated with the LLM; all where not given."""
    balance: Balance = "both"
    """Which modules' microbatches are given equal work: `encoder`, `llm`, `both`, or `none`, which
    takes samples in their order. Dp ranks of every module share a microbatch's work evenly in all
    but `none`. What a step computes does not depend on it; by the schedule simulator it is never
    slower, and so it is on."""
    deferral_span: NonNegativeInt = 0
    """Microbatches by which a step plan may put off a sample's LLM work after its encoders' work;
    encoders then run so much earlier, and keep their activations so much longer. 1 is enough for
    `balance: both` to give the encoders and the LLM equal microbatches each. With encoders that
    are colocated with the LLM nothing is put off beyond a window."""
    deferral_bytes: PositiveInt | None = None
    """Most bytes of activations that a rank of an encoder keeps of samples that are put off, at
    any time; no limit where not given."""
    schedule: str = "1f1b"
    """Order of the LLM's forwards and backwards: `1f1b` (interleaved where `parallel.vpp` says
    so), `zero_bubble` (split backward), `gpipe` (all forwards first), or the path of a schedule
    of one's own, a file as runs leave it: `schedule.yaml`."""
    precision: Precision = "fp32"
    """Arithmetic of activations and of the weights that they meet. With bf16 and fp16 the
    optimizer keeps weights, and gradients are summed, in fp32."""
    loss_scale: LossScaleConfig = LossScaleConfig()
    """With fp16: one scale for all modules."""
    optimizer: OptimizerConfig
    """How weights change."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out evaluation."""
    max_skipped: PositiveInt = 20
    """Steps in a row that all modules skip because a gradient is not finite; one more ends the
    run and names the samples."""
    list_samples: bool = False
    """Write `samples.jsonl`: the keys of every step's samples."""
    trace_steps: NonNegativeInt = 4
    """Steps recorded in trace.json, from the second step on; in these, activations are counted."""

    def is_traced(self, step: int) -> bool:
        """Whether a step is recorded; the first one is slow, as everything is new to it."""
        return 1 <= step <= self.trace_steps

    @model_validator(mode="after")
    def _batch_fills_microbatches(self) -> Self:
        if self.global_batch < self.microbatches:
            raise ConfigError(
                f"global_batch={self.global_batch} is smaller than "
                f"microbatches={self.microbatches}, so some would be empty; "
                f"use at most {self.global_batch} microbatches or a larger batch"
            )
        return self


class DeadlineConfig(Config):
    """How long anything may take before it is an error."""

    placement_s: PositiveFloat = 60.0
    """Until the cluster has placed every group."""
    setup_s: PositiveFloat = 300.0
    """Until every rank has built its modules."""
    step_s: PositiveFloat = 600.0
    """One training step or evaluation."""
    exchange_s: PositiveFloat = 120.0
    """One exchange or collective inside a step."""
    storing_s: PositiveFloat = 1800.0
    """Until a copy of the state is in memory, or a checkpoint is written, beside the training."""


class JobConfig(Config):
    """A training job."""

    name: str
    """Name of the run, in logs and in Ray."""
    seed: int = 0
    """Seed of the initial weights and of the order of samples."""
    groups: dict[str, GroupConfig]
    """Actor groups: disjoint sets of ranks."""
    modules: dict[str, AnyModule]
    """The model graph; the module named `language` is the LLM, the others feed it."""
    data: DataConfig = DataConfig()
    """Where samples come from."""
    train: TrainConfig
    """The training loop."""
    start_from: str | None = None
    """Output folder of an earlier run. Weights that its checkpoint holds under the same names go
    before drawn and `pretrained` ones; modules that it lacks keep these."""
    output: str = "runs/default"
    """Folder of metrics, traces and checkpoints."""
    fallback: Literal["colocated"] | None = None
    """`colocated`: where the groups do not fit the cluster, run every module on the LLM's
    group, with as much data parallelism as fits. Without it such a job fails at once."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What ranks compute on; `auto` takes GPUs where the cluster has enough of them (or `fallback`
    may shrink the job) and CuPy is there to connect the ranks, and says so where it does not."""
    environment: Environment = {}
    """Environment variables that every rank's process starts with, before torch and NCCL load, as
    `NCCL_SOCKET_IFNAME`. Secrets are refused: ranks inherit what their Ray node was started with.
    The driver has none of these: it opens no gloo and no NCCL connection."""
    deadlines: DeadlineConfig = DeadlineConfig()
    """How long anything may take."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the run's state is written."""
    recovery: RecoveryConfig = RecoveryConfig()
    """What happens when a rank dies, hangs or fails."""
    sinks: SinksConfig = SinksConfig()
    """Where the numbers of every step go, beside `metrics.jsonl`."""
    kubernetes: KubernetesConfig | None = None
    """How `disagg-train manifest` puts the job on Kubernetes; training does not read it."""
    plan: PlannedConfig | None = None
    """What the planner expected of this layout, where it wrote it; remove it where you change the
    layout."""

    @property
    def language(self) -> GptModule:
        """The LLM."""
        module = self.modules[LANGUAGE]
        assert isinstance(module, GptModule)
        return module

    @property
    def encoders(self) -> dict[str, EncoderModule]:
        """All modules but the LLM, by name."""
        return {n: m for n, m in self.modules.items() if isinstance(m, EncoderModule)}

    @property
    def checkpoint_folder(self) -> str:
        """Where checkpoints go: a path or an address."""
        return self.checkpoint.folder or f"{self.output}/checkpoints"

    @property
    def num_ranks(self) -> int:
        """Ranks of all groups together."""
        return sum(group.ranks for group in self.groups.values())

    @model_validator(mode="after")
    def _has_a_language_module(self) -> Self:
        if LANGUAGE not in self.modules:
            raise ConfigError(
                f"modules {sorted(self.modules)} have no `{LANGUAGE}`; name the LLM `{LANGUAGE}`"
            )
        for name, module in self.modules.items():
            if isinstance(module, GptModule) != (name == LANGUAGE):
                wanted = "gpt" if name == LANGUAGE else "vit"
                raise ConfigError(
                    f"modules.{name}.kind is {module.kind!r}; the module `{LANGUAGE}` is a gpt "
                    f"and every other module an encoder, use {wanted!r}"
                )
        return self

    @model_validator(mode="after")
    def _plan_is_of_these_modules(self) -> Self:
        if self.plan is not None and set(self.plan.busy_s) != set(self.modules):
            raise ConfigError(
                f"plan.busy_s is of the modules {sorted(self.plan.busy_s)}, the job has "
                f"{sorted(self.modules)}; remove `plan`, or plan again"
            )
        return self

    @model_validator(mode="after")
    def _names_hold_no_separators(self) -> Self:
        """Stages and edges are called `vision.0` and `vision->language`."""
        for name in self.modules:
            if not name.isidentifier():
                raise ConfigError(
                    f"modules: {name!r} is no plain name; use letters, digits and _, and begin "
                    f"with a letter"
                )
        return self

    @model_validator(mode="after")
    def _groups_are_known_and_used(self) -> Self:
        for name, module in self.modules.items():
            if module.group not in self.groups:
                raise ConfigError(
                    f"modules.{name}.group is {module.group!r}; groups has {sorted(self.groups)}"
                )
        unused = sorted(set(self.groups) - {module.group for module in self.modules.values()})
        if unused:
            raise ConfigError(
                f"no module uses the groups {unused}; remove them or name one in a module's `group`"
            )
        return self

    @model_validator(mode="after")
    def _modules_fit_their_groups(self) -> Self:
        for name, module in self.modules.items():
            self._degrees_fit(name)
            self._experts_fit(name)
            if not isinstance(module, TransformerModule | GptModule):
                continue
            tp = module.parallel.tp
            rules = {"num_attention_heads": module.model.num_attention_heads}
            rules["ffn_hidden_size"] = module.model.ffn_size
            if isinstance(module, GptModule):
                if module.model.num_experts is not None:
                    rules["expert_ffn_hidden_size"] = module.model.expert_ffn_size
                rules["num_query_groups"] = module.model.query_groups
                rules["vocab_size"] = module.model.vocab_size
            for field, size in rules.items():
                if size % tp:
                    raise ConfigError(
                        f"modules.{name}: tp={tp} does not divide {field}={size}; "
                        f"use tp one of {divisors(size)[:12]}"
                    )
            self._stages_fit(name, module.model.num_layers_run)
        return self

    def _stages_fit(self, name: str, layers: int) -> None:
        parallel = self.modules[name].parallel
        if layers % (parallel.pp * parallel.vpp):
            stages = f"pp={parallel.pp}" + (f" * vpp={parallel.vpp}" if parallel.vpp > 1 else "")
            raise ConfigError(
                f"modules.{name}: {stages} does not divide its {layers} layers; "
                f"use pp one of {divisors(layers)[:12]}"
            )
        if parallel.vpp > 1 and (name != LANGUAGE or parallel.pp == 1):
            raise ConfigError(
                f"modules.{name}: vpp={parallel.vpp}, but only the LLM's pipelines are "
                f"interleaved, and only with pp > 1; use vpp: 1"
            )

    @model_validator(mode="after")
    def _a_budget_is_of_packed_tokens(self) -> Self:
        if self.train.tokens_per_microbatch is not None and not self.language.packed:
            raise ConfigError(
                f"train.tokens_per_microbatch={self.train.tokens_per_microbatch} is a budget of "
                f"packed samples; set modules.{LANGUAGE}.packed: true"
            )
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        parallel, train = self.language.parallel, self.train
        if parallel.vpp == 1:
            return self
        if train.schedule in ("zero_bubble", "gpipe"):
            raise ConfigError(
                f"train.schedule is {train.schedule!r}, but modules.{LANGUAGE}.parallel.vpp="
                f"{parallel.vpp} asks for the interleaved schedule; use vpp: 1 or schedule: 1f1b"
            )
        window = train.window or train.microbatches
        for field, count in (("microbatches", train.microbatches), ("window", window)):
            if count % parallel.pp:
                raise ConfigError(
                    f"train.{field}={count} is no multiple of pp={parallel.pp}; with vpp="
                    f"{parallel.vpp} microbatches pass in groups of pp, so use a multiple"
                )
        return self

    def _degrees_fit(self, name: str) -> None:
        parallel, group = self.modules[name].parallel, self.modules[name].group
        ranks = self.groups[group].ranks
        if parallel.num_ranks == ranks:
            return
        rest = parallel.tp * parallel.cp * parallel.pp
        way_out = f"set dp: {ranks // rest}" if ranks % rest == 0 else "change tp"
        raise ConfigError(
            f"modules.{name}.parallel: tp*cp*pp*dp = {parallel.tp}*{parallel.cp}*{parallel.pp}*"
            f"{parallel.dp} = {parallel.num_ranks}, but group {group!r} has {ranks} ranks; "
            f"{way_out} or set groups.{group}.ranks: {parallel.num_ranks}"
        )

    def _experts_fit(self, name: str) -> None:
        module, parallel = self.modules[name], self.modules[name].parallel
        experts = module.model.num_experts if isinstance(module, GptModule) else None
        if experts is None and parallel.ep > 1:
            other = "set model.num_experts or " if isinstance(module, GptModule) else ""
            raise ConfigError(
                f"modules.{name}: ep={parallel.ep}, but the model has no experts; {other}use ep: 1"
            )
        if experts is not None and experts % parallel.ep:
            fitting = divisors(gcd(experts, parallel.dp * parallel.cp))
            raise ConfigError(
                f"modules.{name}: ep={parallel.ep} does not divide num_experts={experts}; "
                f"use ep one of {fitting}"
            )
        if experts is not None and parallel.tp > 1 and not parallel.sp:
            raise ConfigError(
                f"modules.{name}: num_experts={experts} with tp={parallel.tp} needs sequence "
                f"parallelism; set parallel.sp: true or tp: 1"
            )
