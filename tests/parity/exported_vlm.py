"""A model put together of the parts that an export leaves, each loaded by transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import gelu, linear

from tests.parity.photos import IMAGE_TOKEN, PATCH


class ExportedVlm:
    """Encoder, projector and LLM of ``disagg-train export --layout modules``.

    Args:
        folder: of the export.
        feature_layer: of the encoder, as the job has it.
    """

    def __init__(self, folder: Path, feature_layer: int) -> None:
        from transformers import AutoModel, AutoModelForCausalLM

        self._encoder = AutoModel.from_pretrained(folder / "vision").eval()
        self._language = AutoModelForCausalLM.from_pretrained(folder / "language").eval()
        self._projector = load_file(folder / "vision" / "projector.safetensors")
        self._feature_layer = feature_layer

    @torch.no_grad()
    def logits(self, tokens: NDArray[Any], inputs: list[NDArray[Any]]) -> Tensor:
        """Return the logits ``[S, V]`` of a sample."""
        ids_S = torch.tensor(tokens)
        embedded_SD = self._language.get_input_embeddings()(ids_S)
        if inputs:
            rows_TD = torch.cat([self._projected(self._features(each)) for each in inputs])
            embedded_SD[ids_S == IMAGE_TOKEN] = rows_TD
        return self._language(inputs_embeds=embedded_SD[None]).logits[0]

    def _projected(self, x_TD: Tensor) -> Tensor:
        first, second = (
            [self._projector[f"linear_{n}.{kind}"] for kind in ("weight", "bias")] for n in (1, 2)
        )
        return linear(gelu(linear(x_TD, *first)), *second)

    def _features(self, values: NDArray[Any]) -> Tensor:
        """Return the rows ``[T, D]`` of an input; CLIP's without those of its class token."""
        family, x = self._encoder.config.model_type, torch.tensor(values)
        if family == "whisper":
            return self._encoder.get_encoder()(x.T[None]).last_hidden_state[0]
        arguments: dict[str, Any] = {"pixel_values": x.permute(2, 0, 1)[None]}
        if family == "siglip2_vision_model":
            side = len(x) // PATCH
            patches = x.unflatten(1, (side, PATCH)).unflatten(0, (side, PATCH)).transpose(1, 2)
            arguments = {
                "pixel_values": patches.reshape(1, side * side, -1),
                "pixel_attention_mask": torch.ones(1, side * side, dtype=torch.int64),
                "spatial_shapes": torch.tensor([[side, side]]),
            }
        states = self._encoder(**arguments, output_hidden_states=True).hidden_states
        found: Tensor = states[self._feature_layer][0]
        return found[1:] if family == "clip_vision_model" else found


def mean_loss(logits_of: Any, samples: list[Any]) -> float:
    """Return the mean loss over the targets of samples.

    Args:
        logits_of: tokens, inputs of the encoder -> logits.
        samples: loaded.
    """
    from torch.nn.functional import cross_entropy

    total, count = 0.0, 0
    for sample in samples:
        logits_SV = logits_of(sample.token_ids_S, list(sample.inputs.get("vision", ())))
        labels = torch.tensor(np.asarray(sample.labels_S))
        total += float(cross_entropy(logits_SV, labels, ignore_index=-1, reduction="sum"))
        count += int((labels >= 0).sum())
    return total / count
