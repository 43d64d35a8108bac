"""A vision-language model in plain torch, one sample at a time: what every layout is held to.

It shares no code with the trainer's modules: no Megatron, no packing, no routes. It takes the
full weights by their full names, so its gradients come out under the same names.

Shapes: P patches of an image, S tokens of a sample, T tokens of either, M merged tokens,
D width, G query groups, H heads of a group, C channels of a head, F feed-forward, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, linear, silu

from disagg_train.data.source import Sample

_EPS = 1e-5

Weights = Mapping[str, Tensor]
Layer = Callable[[Weights, str, Tensor], Tensor]


@dataclass(frozen=True)
class PlainVlm:
    """A ViT, a projector and a decoder.

    Args:
        weights: full weights by full name, all of one dtype.
        patch_size: side of a patch in pixels.
        merge: consecutive patches that become one token.
        vit_heads: attention heads of the ViT.
        query_groups: heads of keys and values of the decoder.
        rotary_base: base of the decoder's rotary frequencies.
    """

    weights: Weights
    patch_size: int
    merge: int
    vit_heads: int
    query_groups: int
    rotary_base: float

    def loss_sum(self, sample: Sample, placeholders: Sequence[int]) -> Tensor:
        """Return the sum of a sample's token losses.

        Args:
            sample: its tokens, labels and images.
            placeholders: positions that the tokens of its images fill, in order.
        """
        images = [image for images in sample.inputs.values() for image in images]
        table_VD = self.weights["language.gpt.embedding.word_embeddings.weight"]
        rows = [table_VD[token] for token in sample.token_ids_S]
        seen = [row_D for image in images for row_D in self.image_tokens(image)]
        for position, row_D in zip(placeholders, seen, strict=True):
            rows[position] = row_D
        decoder = _under(self.weights, "language.gpt.decoder")
        x_SD = _transformer(
            decoder, torch.stack(rows), _rms_norm, _swiglu, self.query_groups, self.rotary_base
        )
        head_VD = self.weights.get("language.gpt.output_layer.weight", table_VD)  # or it is tied
        logits_SV = linear(x_SD, head_VD)
        labels_S = torch.from_numpy(sample.labels_S)
        return cross_entropy(logits_SV[labels_S >= 0], labels_S[labels_S >= 0], reduction="sum")

    def image_tokens(self, image: NDArray) -> Tensor:
        """Return the rows ``[M, D]`` that an image puts into the sequence."""
        vision = _under(self.weights, "vision")
        x_PD = torch.stack(
            [
                _linear(vision, "embedding.patch", pixels)
                + vision["embedding.row.weight"][row]
                + vision["embedding.column.weight"][column]
                for pixels, row, column in self._patches(image)
            ]
        )
        encoder = _under(vision, "encoder")
        x_PD = _transformer(encoder, x_PD, _layer_norm, _gelu_mlp, self.vit_heads, None)
        merged = [torch.cat(list(run_PD)) for run_PD in x_PD.split(self.merge)]
        return _gelu_mlp(vision, "projector.encoder", torch.stack(merged))

    def _patches(self, image: NDArray) -> list[tuple[Tensor, int, int]]:
        """Return (pixels, row, column) of every patch, down the columns from left to right."""
        side, dtype = self.patch_size, next(iter(self.weights.values())).dtype
        rows, columns = image.shape[0] // side, image.shape[1] // side
        pixels = torch.tensor(image, dtype=dtype)
        return [
            (pixels[r * side : (r + 1) * side, c * side : (c + 1) * side].flatten(), r, c)
            for c in range(columns)
            for r in range(rows)
        ]


def _transformer(
    weights: Weights, x_TD: Tensor, norm: Layer, mlp: Layer, groups: int, base: float | None
) -> Tensor:
    below = _under(weights, "layers")
    for number in range(1 + max(int(name.partition(".")[0]) for name in below)):
        layer = _under(below, str(number))
        normed_TD = norm(layer, "input_layernorm", x_TD)
        x_TD = x_TD + _attention(_under(layer, "self_attention"), normed_TD, groups, base)
        x_TD = x_TD + mlp(layer, "mlp", norm(layer, "pre_mlp_layernorm", x_TD))
    return norm(weights, "final_layernorm", x_TD)


def _attention(weights: Weights, x_TD: Tensor, groups: int, base: float | None) -> Tensor:
    """Attend; with a rotary base causally and by position, else over all tokens.

    The rows of ``linear_qkv`` go by query group: the queries of its heads, its key, its value.
    """
    channels = weights["linear_proj.weight"].shape[1]
    qkv_rows = weights["linear_qkv.weight"].shape[0]
    head_width = (qkv_rows - channels) // (2 * groups)
    fused_TGHC = _linear(weights, "linear_qkv", x_TD).unflatten(1, (groups, -1, head_width))
    q_TGHC, k_TG1C, v_TG1C = fused_TGHC[:, :, :-2], fused_TGHC[:, :, -2:-1], fused_TGHC[:, :, -1:]
    if base is not None:
        q_TGHC, k_TG1C = _rotate(q_TGHC, base), _rotate(k_TG1C, base)
    scores_GHTT = torch.einsum("tghc,sgoc->ghts", q_TGHC, k_TG1C) / head_width**0.5
    if base is not None:
        future_TT = torch.ones(scores_GHTT.shape[2:], dtype=torch.bool).triu(1)
        scores_GHTT = scores_GHTT.masked_fill(future_TT, -torch.inf)
    mixed_TGHC = torch.einsum("ghts,sgoc->tghc", scores_GHTT.softmax(dim=3), v_TG1C)
    return _linear(weights, "linear_proj", mixed_TGHC.flatten(1))


def _rotate(x_TGHC: Tensor, base: float) -> Tensor:
    """Turn channel i against channel i + C/2 by position * base ** (-2i / C)."""
    positions_T = torch.arange(x_TGHC.shape[0], dtype=x_TGHC.dtype)
    channels = x_TGHC.shape[3]
    frequencies = base ** (-torch.arange(0, channels, 2, dtype=x_TGHC.dtype) / channels)
    angles = torch.outer(positions_T, frequencies)[:, None, None, :]
    low, high = x_TGHC.chunk(2, dim=3)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=3)


def _under(weights: Weights, path: str) -> dict[str, Tensor]:
    """Return the weights below ``path``, by the rest of their names."""
    below = f"{path}."
    return {name.removeprefix(below): w for name, w in weights.items() if name.startswith(below)}


def _linear(weights: Weights, path: str, x: Tensor) -> Tensor:
    return linear(x, weights[f"{path}.weight"], weights.get(f"{path}.bias"))


def _layer_norm(weights: Weights, path: str, x_TD: Tensor) -> Tensor:
    centred_TD = x_TD - x_TD.mean(dim=1, keepdim=True)
    return _rms_norm(weights, path, centred_TD) + weights[f"{path}.bias"]


def _rms_norm(weights: Weights, path: str, x_TD: Tensor) -> Tensor:
    mean_square_T1 = x_TD.square().mean(dim=1, keepdim=True)
    return x_TD * (mean_square_T1 + _EPS).rsqrt() * weights[f"{path}.weight"]


def _gelu_mlp(weights: Weights, path: str, x: Tensor) -> Tensor:
    return _linear(weights, f"{path}.linear_fc2", gelu(_linear(weights, f"{path}.linear_fc1", x)))


def _swiglu(weights: Weights, path: str, x_TD: Tensor) -> Tensor:
    gate_TF, up_TF = _linear(weights, f"{path}.linear_fc1", x_TD).chunk(2, dim=1)
    return _linear(weights, f"{path}.linear_fc2", silu(gate_TF) * up_TF)
