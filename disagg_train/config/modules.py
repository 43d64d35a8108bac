"""Modules of the job file: what they are, where they sit, how they are cut."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from disagg_train.config.base import Config, divisors
from disagg_train.errors import ConfigError

Recompute = Literal["none", "selective", "full"]
"""What a backward computes again: nothing, the core of attention, or whole layers."""


class ParallelConfig(Config):
    """Degrees of parallelism of one module."""

    tp: PositiveInt = 1
    """Tensor-parallel degree: ranks that share each weight matrix."""
    sp: bool = False
    """Sequence parallelism: the tp ranks also share the tokens between the matrices."""
    cp: PositiveInt = 1
    """Context-parallel degree: ranks that share the tokens of each sequence."""
    pp: PositiveInt = 1
    """Pipeline-parallel degree: stages of equally many layers."""
    vpp: PositiveInt = 1
    """Stages per pipeline rank (interleaved 1F1B); the LLM's alone, and with pp > 1."""
    dp: PositiveInt = 1
    """Data-parallel degree: replicas that share the samples."""
    ep: PositiveInt = 1
    """Expert-parallel degree; regroups dp * cp ranks, adds none."""

    @property
    def num_ranks(self) -> int:
        """Ranks that the degrees multiply to."""
        return self.tp * self.cp * self.pp * self.dp

    @property
    def sequence_parallel(self) -> bool:
        """Whether tokens are really split over tp: with tp=1 there is nothing to split."""
        return self.sp and self.tp > 1

    @model_validator(mode="after")
    def _experts_fit(self) -> Self:
        lanes = self.dp * self.cp
        if lanes % self.ep:
            raise ConfigError(
                f"ep={self.ep} does not divide dp*cp = {self.dp}*{self.cp} = {lanes}; "
                f"use one of {divisors(lanes)}"
            )
        return self


class TransformerConfig(Config):
    """Sizes of a transformer."""

    num_layers: PositiveInt
    """Number of layers."""
    hidden_size: PositiveInt
    """Width of a token's representation."""
    num_attention_heads: PositiveInt
    """Attention heads; tp must divide them."""
    ffn_hidden_size: PositiveInt | None = None
    """Width of the feed-forward layer; 4 * hidden_size where it is not given."""

    @property
    def ffn_size(self) -> int:
        """The feed-forward width that is used."""
        return self.ffn_hidden_size or 4 * self.hidden_size

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"num_attention_heads={self.num_attention_heads} does not divide "
                f"hidden_size={self.hidden_size}; use one of {divisors(self.hidden_size)}"
            )
        return self


class VitConfig(TransformerConfig):
    """A vision transformer over images of any size, packed into one sequence."""

    patch_size: PositiveInt
    """Side of a square patch in pixels; image sides are multiples of it."""
    num_channels: PositiveInt = 1
    """Colour channels."""
    max_patches_per_side: PositiveInt = 64
    """Longest image side in patches; each row and column has a learned position."""


class GptConfig(TransformerConfig):
    """A decoder with grouped-query attention, RMSNorm, SwiGLU and rotary positions."""

    num_query_groups: PositiveInt | None = None
    """Groups of heads that share keys and values; num_attention_heads where not given."""
    vocab_size: PositiveInt = 384
    """Rows of the embedding; depends on the model only and must be a multiple of tp."""
    rotary_base: PositiveInt = 10_000
    """Base of the rotary position frequencies."""
    tie_embeddings: bool = False
    """Let the output layer use the embedding's matrix instead of one of its own."""
    num_experts: PositiveInt | None = None
    """Experts of each layer; one dense feed-forward layer where not given."""
    experts_per_token: PositiveInt = 2
    """Experts that each token passes through; the router chooses them."""
    expert_ffn_hidden_size: PositiveInt | None = None
    """Width of one expert's feed-forward layer; that of the layer where not given."""

    @property
    def query_groups(self) -> int:
        """The number of query groups that is used."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def expert_ffn_size(self) -> int:
        """The feed-forward width of one expert that is used."""
        return self.expert_ffn_hidden_size or self.ffn_size

    @model_validator(mode="after")
    def _query_groups_fit(self) -> Self:
        if self.num_attention_heads % self.query_groups:
            raise ConfigError(
                f"num_query_groups={self.query_groups} does not divide "
                f"num_attention_heads={self.num_attention_heads}; use one of "
                f"{divisors(self.num_attention_heads)}"
            )
        return self

    @model_validator(mode="after")
    def _experts_are_enough(self) -> Self:
        if self.num_experts is not None and self.experts_per_token > self.num_experts:
            raise ConfigError(
                f"experts_per_token={self.experts_per_token} is more than "
                f"num_experts={self.num_experts}; use at most {self.num_experts}"
            )
        if self.num_experts is None and self.expert_ffn_hidden_size is not None:
            raise ConfigError(
                f"expert_ffn_hidden_size={self.expert_ffn_hidden_size}, but there are no "
                f"experts; set num_experts or use ffn_hidden_size"
            )
        return self


class ProjectorConfig(Config):
    """Turns an encoder's tokens into the LLM's width."""

    kind: Literal["mlp", "linear"] = "mlp"
    """Two layers with a GELU between them, or one layer."""
    merge: PositiveInt = 1
    """Consecutive encoder tokens that are joined into one LLM token."""
    freeze: bool | None = None
    """Keep the projector's weights as they are; follows the module's `freeze` if not given."""


class ModuleConfig(Config):
    """A named node of the model graph."""

    group: str
    """Actor group that hosts the module; modules of one group are colocated."""
    parallel: ParallelConfig = ParallelConfig()
    """How the module is cut over the group's ranks."""
    freeze: bool = False
    """Keep the module's weights as they are."""
    recompute: Recompute = "none"
    """Compute activations again in the backward instead of keeping them: those of the core of
    attention (selective), or of whole layers, of which only the inputs are kept (full)."""


class VitModule(ModuleConfig):
    """A vision encoder with its projector."""

    kind: Literal["vit"]
    """The encoder's architecture."""
    model: VitConfig
    """Sizes of the encoder."""
    projector: ProjectorConfig = ProjectorConfig()
    """From the encoder's width to the LLM's."""

    @property
    def freezes_projector(self) -> bool:
        """Whether the projector's weights stay as they are."""
        return self.freeze if self.projector.freeze is None else self.projector.freeze

    @property
    def trainable(self) -> bool:
        """Whether any weight of the module is trained."""
        return not (self.freeze and self.freezes_projector)


class GptModule(ModuleConfig):
    """The LLM."""

    kind: Literal["gpt"]
    """The LLM's architecture."""
    model: GptConfig
    """Sizes of the LLM."""
    packed: bool = True
    """Lay a microbatch's samples one after the other; false pads them to one length each."""

    @property
    def trainable(self) -> bool:
        """Whether any weight of the module is trained."""
        return not self.freeze


AnyModule = Annotated[VitModule | GptModule, Field(discriminator="kind")]
