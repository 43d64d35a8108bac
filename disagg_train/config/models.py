"""Sizes of the models that modules hold."""

from typing import Literal, Self

from pydantic import NegativeInt, PositiveFloat, PositiveInt, model_validator

from disagg_train.config.base import Config, divisors
from disagg_train.errors import ConfigError

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
"""Of an encoder's feed-forward layers: exact, by its tanh formula, or x * sigmoid(1.702 x)."""


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
    norm_eps: PositiveFloat = 1e-5
    """Added to the variance by every norm."""

    @property
    def ffn_size(self) -> int:
        """The feed-forward width that is used."""
        return self.ffn_hidden_size or 4 * self.hidden_size

    @property
    def num_layers_run(self) -> int:
        """Layers that run, and that are built."""
        return self.num_layers


class EncoderConfig(TransformerConfig):
    """A bidirectional transformer with LayerNorms and biases; tokens of any inputs, packed."""

    activation: Activation = "gelu"
    """Of the feed-forward layers."""
    feature_layer: NegativeInt = -1
    """Which layer's output goes to the projector, from the end, as LLaVA's `vision_feature_layer`:
    -1 is the last one's, -2 the one's before; layers behind it are not built."""
    last_norm: bool = True
    """Whether the last norm follows the last layer; none ever follows an earlier one. LLaVA in
    transformers reads `hidden_states`, which the towers of SigLIP and SigLIP 2 keep from before
    that norm, so theirs is off; on, the output is their `last_hidden_state`, which LLaVA reads
    where the tower's config says `tie_last_hidden_states`. Whisper's `hidden_states` end with
    its `last_hidden_state`, behind the norm; CLIP norms its pooled output alone."""

    @property
    def norms_output(self) -> bool:
        """Whether a norm follows the layer whose output is used."""
        return self.last_norm and self.feature_layer == -1

    @property
    def num_class_tokens(self) -> int:
        """Tokens at the end of every input that the projector's output is used without."""
        return 0

    @property
    def values_per_token(self) -> int:
        """Values that the first layer's input is made of, for every token."""
        raise NotImplementedError

    @property
    def num_layers_run(self) -> int:
        """Layers up to the one whose output is used."""
        return self.num_layers + 1 + self.feature_layer

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        _check_heads(self)
        return self

    @model_validator(mode="after")
    def _feature_layer_exists(self) -> Self:
        if self.num_layers_run < 1:
            raise ConfigError(
                f"feature_layer={self.feature_layer}, but there are num_layers={self.num_layers}; "
                f"use -1 to {-self.num_layers}"
            )
        return self


class PatchConfig(EncoderConfig):
    """A transformer over patches of images."""

    patch_size: PositiveInt
    """Side of a square patch in pixels; image sides are multiples of it."""
    num_channels: PositiveInt = 3
    """Colour channels."""

    @property
    def values_per_token(self) -> int:
        """Values of a patch."""
        return self.patch_size**2 * self.num_channels


class VitConfig(PatchConfig):
    """A vision transformer over images of any size; each patch row and column has a position."""

    num_channels: PositiveInt = 1
    """Colour channels."""
    max_patches_per_side: PositiveInt = 64
    """Longest image side in patches; each row and column has a learned position."""


class FixedVitConfig(PatchConfig):
    """A vision transformer over square images of one size: CLIP's and SigLIP's."""

    image_size: PositiveInt
    """Side of an image in pixels; what is left over behind the last whole patch is not seen."""

    @property
    def patches_per_side(self) -> int:
        """Patches along a side of an image."""
        return self.image_size // self.patch_size


class ClipConfig(FixedVitConfig):
    """CLIP's vision tower: a class token, and a norm before the first layer but none after."""

    activation: Activation = "quick_gelu"
    """Of the feed-forward layers."""
    last_norm: Literal[False] = False
    """CLIP's last norm is for the class token's own uses."""

    @property
    def num_class_tokens(self) -> int:
        """One."""
        return 1


class SiglipConfig(FixedVitConfig):
    """SigLIP's vision tower."""

    activation: Activation = "gelu_tanh"
    """Of the feed-forward layers."""
    norm_eps: PositiveFloat = 1e-6
    """Added to the variance by every norm."""
    last_norm: bool = False
    """Whether the last norm follows the last layer."""


class Siglip2Config(PatchConfig):
    """SigLIP 2's NaFlex tower: images keep their shape; positions are stretched to their grid."""

    positions_per_side: PositiveInt = 16
    """Side of the square grid of learned positions."""
    activation: Activation = "gelu_tanh"
    """Of the feed-forward layers."""
    norm_eps: PositiveFloat = 1e-6
    """Added to the variance by every norm."""
    last_norm: bool = False
    """Whether the last norm follows the last layer."""


class WhisperConfig(EncoderConfig):
    """Whisper's encoder: two convolutions over mel frames, two frames a token."""

    num_mel_bins: PositiveInt = 80
    """Values of a frame."""
    max_tokens: PositiveInt = 1500
    """Tokens of the longest recording: half its frames."""

    @property
    def values_per_token(self) -> int:
        """Values of the five frames that two convolutions see."""
        return 5 * self.num_mel_bins


class RopeScaling(Config):
    """How Llama 3 stretches its rotary positions to long contexts."""

    factor: PositiveFloat
    """By how much low frequencies are slowed."""
    low_freq_factor: PositiveFloat = 1.0
    """Wavelengths above the original context divided by this are slowed in full."""
    high_freq_factor: PositiveFloat = 4.0
    """Wavelengths below the original context divided by this are left alone."""
    original_max_position_embeddings: PositiveInt = 8192
    """The original context, in tokens."""


class GptConfig(TransformerConfig):
    """A decoder with grouped-query attention, RMSNorm, SwiGLU and rotary positions."""

    num_query_groups: PositiveInt | None = None
    """Groups of heads that share keys and values; num_attention_heads where not given."""
    vocab_size: PositiveInt = 384
    """Rows of the embedding; depends on the model only and must be a multiple of tp."""
    rotary_base: PositiveFloat = 10_000
    """Base of the rotary position frequencies."""
    rope_scaling: RopeScaling | None = None
    """How positions are stretched; not where not given."""
    head_size: PositiveInt | None = None
    """Width of an attention head; hidden_size / num_attention_heads where not given."""
    qkv_bias: bool = False
    """Whether queries, keys and values have biases, as in Qwen2.5."""
    qk_norm: bool = False
    """Whether each head's queries and keys are normed, as in Qwen3."""
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
    def head_width(self) -> int:
        """The width of a head that is used."""
        return self.head_size or self.hidden_size // self.num_attention_heads

    @property
    def expert_ffn_size(self) -> int:
        """The feed-forward width of one expert that is used."""
        return self.expert_ffn_hidden_size or self.ffn_size

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.head_size is None:
            _check_heads(self)
        return self

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


def _check_heads(model: TransformerConfig) -> None:
    if model.hidden_size % model.num_attention_heads:
        raise ConfigError(
            f"num_attention_heads={model.num_attention_heads} does not divide "
            f"hidden_size={model.hidden_size}; use one of {divisors(model.hidden_size)}"
        )
