"""Sizes of models that measurements and simulations are made with, as job files name them. Pure."""

from collections.abc import Mapping
from types import MappingProxyType

Sizes = Mapping[str, int]


def vit(layers: int, hidden: int, heads: int, ffn: int | None = None) -> Sizes:
    """Return an encoder's sizes; its patches have 14 pixels.

    Args:
        layers: how many.
        hidden: size.
        heads: of attention.
        ffn: feed-forward size; four times the hidden size where not given.
    """
    return MappingProxyType(
        {
            "num_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "ffn_hidden_size": ffn or 4 * hidden,
            "patch_size": 14,
        }
    )


def gpt(layers: int, hidden: int, heads: int, groups: int, ffn: int, vocabulary: int) -> Sizes:
    """Return an LLM's sizes.

    Args:
        layers: how many.
        hidden: size.
        heads: of attention.
        groups: of heads that share keys and values.
        ffn: feed-forward size.
        vocabulary: tokens.
    """
    return MappingProxyType(
        {
            "num_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "num_query_groups": groups,
            "ffn_hidden_size": ffn,
            "vocab_size": vocabulary,
        }
    )


SO400M = vit(27, 1152, 16, 4304)
QWEN_7B = gpt(28, 3584, 28, 4, 18944, 152064)
MISTRAL_LARGE = gpt(88, 12288, 96, 8, 28672, 32768)
