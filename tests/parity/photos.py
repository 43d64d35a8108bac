"""A small LLaVA of transformers with random weights, and photos with captions to train it on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from disagg_train.data.source import IGNORE, Sample, Split
from disagg_train.planner.step_plan import SampleSize, Slot

SIDE, PATCH, IMAGE_TOKEN, VOCABULARY = 28, 7, 63, 64
_IMAGE_TOKENS = (SIDE // PATCH) ** 2
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
}


def save_llava(folder: Path) -> Any:
    """Save a SigLIP + Qwen2.5 LLaVA, none of its weights at its usual initial value."""
    import torch
    from transformers import (
        LlavaConfig,
        LlavaForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    torch.manual_seed(5)
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**_VISION),
        text_config=Qwen2Config(**_TEXT),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


class Photos:
    """Samples of none to two random photos, then a caption; drawn by key."""

    def __init__(self, encoders: Mapping[str, Any], seed: int = 0, samples: int = 24) -> None:
        self._encoder, self._seed, self._samples = next(iter(encoders)), seed, samples

    def sizes(self, split: Split) -> Sequence[SampleSize]:
        first = 0 if split == "train" else self._samples
        return [self._size(key) for key in range(first, first + self._samples)]

    def load(self, key: int) -> Sample:
        size, rng = self._size(key), np.random.default_rng((self._seed, key, 1))
        token_ids = rng.integers(1, IMAGE_TOKEN, size.sequence_tokens)
        labels = np.full(size.sequence_tokens, IGNORE)
        first = size.sequence_tokens - size.target_tokens
        labels[first - 1 : -1] = token_ids[first:]
        slots = size.slots.get(self._encoder, ())
        for slot in slots:
            token_ids[slot.position : slot.position + slot.count] = IMAGE_TOKEN
        photos = [rng.normal(size=(SIDE, SIDE, 3)).astype(np.float32) for _ in slots]
        return Sample(key, token_ids, labels, {self._encoder: photos} if photos else {})

    def text(self, token_ids: Sequence[int]) -> str:
        return " ".join(map(str, token_ids))

    def _size(self, key: int) -> SampleSize:
        rng = np.random.default_rng((self._seed, key))
        photos, targets = int(rng.integers(0, 3)), int(rng.integers(2, 7))
        slots = tuple(Slot(1 + i * (_IMAGE_TOKENS + 1), _IMAGE_TOKENS) for i in range(photos))
        length = 2 + photos * (_IMAGE_TOKENS + 1) + targets
        if not photos:
            return SampleSize(key, length, targets)
        inputs = (_IMAGE_TOKENS,) * photos
        return SampleSize(key, length, targets, {self._encoder: slots}, {self._encoder: inputs})
