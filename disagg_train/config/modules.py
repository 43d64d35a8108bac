"""Modules of the job file: what they are, where they sit, how they are cut."""

from collections.abc import Mapping
from math import isqrt, lcm
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from disagg_train.config.base import Config, divisors
from disagg_train.config.models import (
    ClipConfig,
    EncoderConfig,
    GptConfig,
    Siglip2Config,
    SiglipConfig,
    VitConfig,
    WhisperConfig,
)
from disagg_train.errors import ConfigError

Recompute = Literal["none", "selective", "full"]
"""What a backward computes again: nothing, the core of attention, or whole layers."""

LoraTarget = Literal["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
"""Linears of a layer: into and out of attention, up and down."""


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


class Placed(Protocol):
    """What says how a module's ranks are placed."""

    @property
    def group(self) -> str:
        """Name of its actor group."""

    @property
    def parallel(self) -> ParallelConfig:
        """Its degrees."""


def tp_ranks(modules: Mapping[str, Placed], group: str) -> int:
    """Return how many neighbours of a group must share a node.

    As many as the largest tp group of its modules has; where their sizes do not divide one
    another, their least common multiple.
    """
    return lcm(*(module.parallel.tp for module in modules.values() if module.group == group))


class ProjectorConfig(Config):
    """Turns an encoder's tokens into the LLM's width."""

    kind: Literal["mlp", "linear"] = "mlp"
    """Two layers with a GELU between them, as wide as the LLM (LLaVA's), or one layer."""
    merge: PositiveInt = 1
    """Consecutive encoder tokens that are joined into one LLM token; of images that keep their
    shape (`siglip2`) 4, 9, ... joins squares of 2 x 2, 3 x 3, ... patches."""
    freeze: bool | None = None
    """Keep the projector's weights as they are; where not given, frozen if the whole module is."""


class LoraConfig(Config):
    """Low-rank additions to a module's matrices; they alone are trained (Hu et al., 2021)."""

    rank: PositiveInt = 16
    """Rank of an addition."""
    alpha: PositiveFloat = 32.0
    """Additions are scaled by alpha / rank."""
    targets: tuple[LoraTarget, ...] = Field(
        default=("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"), min_length=1
    )
    """Linears of a layer that get one; experts get none."""


class ModuleConfig(Config):
    """A named node of the model graph."""

    group: str
    """Actor group that hosts the module; modules of one group are colocated."""
    parallel: ParallelConfig = ParallelConfig()
    """How the module is cut over the group's ranks."""
    pretrained: str | None = None
    """Folder or hub id of a Hugging Face checkpoint that sizes and weights are read from; fields
    of `model` that are given go before it. Weights are drawn where it is not given."""
    freeze: bool | tuple[str, ...] = False
    """Keep the module's weights as they are: all, or those whose names match one of these
    patterns (`encoder.layers.0.*`; names as in the checkpoint of a run)."""
    lora: LoraConfig | None = None
    """Train low-rank additions to the frozen matrices of the layers."""
    lr: PositiveFloat | None = None
    """Highest learning rate of this module; `train.optimizer.lr` where not given."""
    weight_decay: NonNegativeFloat | None = None
    """Weight decay of this module; `train.optimizer.weight_decay` where not given."""
    recompute: Recompute = "none"
    """Compute activations again in the backward instead of keeping them: those of the core of
    attention (selective), or of whole layers, of which only the inputs are kept (full)."""

    @property
    def freezes_all(self) -> bool:
        """Whether every weight of the module stays as it is, a projector's aside."""
        return self.freeze is True and self.lora is None


class EncoderModule(ModuleConfig):
    """An encoder with its projector."""

    projector: ProjectorConfig = ProjectorConfig()
    """From the encoder's width to the LLM's."""

    @property
    def freezes_projector(self) -> bool:
        """Whether the projector's weights stay as they are."""
        return self.freezes_all if self.projector.freeze is None else self.projector.freeze

    @property
    def trainable(self) -> bool:
        """Whether any weight of the module is trained."""
        return not (self.freezes_all and self.freezes_projector)


class TransformerModule(EncoderModule):
    """An encoder of a known family."""

    kind: str
    """The encoder's family."""
    model: EncoderConfig
    """Sizes of the encoder."""


class VitModule(TransformerModule):
    """A plain vision transformer over images of any size."""

    kind: Literal["vit"]
    """The encoder's family."""
    model: VitConfig
    """Sizes of the encoder."""


class ClipModule(TransformerModule):
    """CLIP's vision tower."""

    kind: Literal["clip"]
    """The encoder's family."""
    model: ClipConfig
    """Sizes of the encoder."""

    @model_validator(mode="after")
    def _keeps_the_class_token_apart(self) -> Self:
        if self.projector.merge > 1:
            raise ConfigError(
                f"projector.merge={self.projector.merge}, but CLIP's class token cannot be joined "
                f"with patches; use merge: 1"
            )
        return self


class SiglipModule(TransformerModule):
    """SigLIP's vision tower."""

    kind: Literal["siglip"]
    """The encoder's family."""
    model: SiglipConfig
    """Sizes of the encoder."""

    @model_validator(mode="after")
    def _merge_divides_the_patches(self) -> Self:
        _check_merge(self.projector.merge, self.model.patches_per_side**2, "patches of an image")
        return self


class Siglip2Module(TransformerModule):
    """SigLIP 2's NaFlex vision tower."""

    kind: Literal["siglip2"]
    """The encoder's family."""
    model: Siglip2Config
    """Sizes of the encoder."""
    max_num_patches: PositiveInt | None = None
    """Images are resized to at most this many patches, keeping their shape; where not given, as
    the checkpoint's image processor says, else 256."""

    @property
    def merged_side(self) -> int:
        """Side in patches of the squares that the projector joins."""
        return isqrt(self.projector.merge)

    @model_validator(mode="after")
    def _merges_squares(self) -> Self:
        merge, side = self.projector.merge, self.merged_side
        if merge != side**2:
            raise ConfigError(
                f"projector.merge={merge}, but of siglip2 squares of patches are joined; use "
                f"{side**2} or {(side + 1) ** 2}"
            )
        return self


class WhisperModule(TransformerModule):
    """Whisper's audio encoder."""

    kind: Literal["whisper"]
    """The encoder's family."""
    model: WhisperConfig
    """Sizes of the encoder."""

    @model_validator(mode="after")
    def _merge_divides_the_tokens(self) -> Self:
        _check_merge(self.projector.merge, self.model.max_tokens, "tokens of a recording")
        return self


class CustomModule(EncoderModule):
    """An encoder of one's own: a class of type `nn.Module`, imported on the ranks."""

    kind: str = Field(pattern=r"^[\w.]+:\w+$")
    """Import path, as `package.module:Class`."""
    options: dict[str, Any] = {}
    """Keyword arguments of the class."""

    @model_validator(mode="after")
    def _asks_for_nothing_that_only_known_families_have(self) -> Self:
        wrong = {
            "pretrained": (self.pretrained is not None, "load weights in the class's __init__"),
            "lora": (self.lora is not None, "freeze what is not to be trained"),
            "recompute: selective": (self.recompute == "selective", "use full or none"),
            "parallel.sp": (self.parallel.sequence_parallel, "every tp rank returns all tokens"),
        }
        for field, (asked, way_out) in wrong.items():
            if asked:
                raise ConfigError(
                    f"{field} is for encoders of known families, and {self.kind!r} is a class of "
                    f"one's own; remove it: {way_out}"
                )
        return self


class GptModule(ModuleConfig):
    """The LLM."""

    kind: Literal["gpt"]
    """The LLM's family: Llama, Qwen2.5, Qwen3, Mixtral and their like are all this one."""
    model: GptConfig
    """Sizes of the LLM."""
    packed: bool = True
    """Lay a microbatch's samples one after the other; false pads them to one length each."""

    @property
    def trainable(self) -> bool:
        """Whether any weight of the module is trained."""
        return not self.freezes_all


def _check_merge(merge: int, count: int, what: str) -> None:
    if count % merge:
        raise ConfigError(
            f"projector.merge={merge} does not divide the {count} {what}; use one of "
            f"{divisors(count)}"
        )


def _kind(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "custom" if isinstance(kind, str) and ":" in kind else str(kind)


AnyModule = Annotated[
    Annotated[VitModule, Tag("vit")]
    | Annotated[ClipModule, Tag("clip")]
    | Annotated[SiglipModule, Tag("siglip")]
    | Annotated[Siglip2Module, Tag("siglip2")]
    | Annotated[WhisperModule, Tag("whisper")]
    | Annotated[CustomModule, Tag("custom")]
    | Annotated[GptModule, Tag("gpt")],
    Discriminator(
        _kind,
        custom_error_type="unknown_kind",
        custom_error_message="kind is none of vit, clip, siglip, siglip2, whisper, gpt, nor an "
        "import path as package.module:Class",
    ),
]
