"""Tiny towers of transformers with random weights, the inputs they are tried with, and outputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float32]

NUM_LAYERS, HIDDEN, PATCH = 4, 32, 7
_SIZES = {"hidden_size": HIDDEN, "intermediate_size": 48, "num_attention_heads": 4}
_TOWER = _SIZES | {"num_hidden_layers": NUM_LAYERS, "patch_size": PATCH}


@dataclass(frozen=True)
class Family:
    """How a family is tried.

    Args:
        kind: of the module.
        shapes: of its inputs.
        tokens: that each gives the LLM.
        merge: of the projector.
        outputs: feature layer and last norm of each output that transformers has.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    tokens: tuple[int, ...]
    merge: int = 1
    outputs: tuple[tuple[int, bool], ...] = ((-1, False), (-2, False), (-3, False))

    def inputs(self) -> list[Floats]:
        """Return the same random inputs every time."""
        rng = np.random.default_rng(len(self.kind))
        return [rng.normal(size=shape).astype(np.float32) for shape in self.shapes]


_ALSO_NORMED = ((-1, True), (-1, False), (-2, False), (-3, False))
FAMILIES: Mapping[str, Family] = {
    family.kind: family
    for family in (
        Family("clip", ((28, 28, 3),) * 3, (16,) * 3),
        # two pixels on each side are left over
        Family("siglip", ((30, 30, 3),) * 3, (16,) * 3, outputs=_ALSO_NORMED),
        Family(
            "siglip2",
            ((28, 42, 3), (14, 14, 3), (84, 14, 3)),
            (6, 1, 6),
            merge=4,
            outputs=_ALSO_NORMED,
        ),
        Family(
            "whisper", ((40, 8),) * 2, (20,) * 2, outputs=((-1, True), (-2, False), (-3, False))
        ),
    )
}


@dataclass
class Tower:
    """A tower and what it makes of its family's inputs.

    Args:
        tensors: of its checkpoint, by the names of the tower alone.
        outputs: per feature layer and last norm, the rows ``[tokens, merge * D]`` of all inputs.
    """

    tensors: Mapping[str, "Tensor"]
    outputs: dict[tuple[int, bool], Floats] = field(default_factory=dict)


def save_tower(kind: str, folder: Path) -> Tower:
    """Save a checkpoint in ``folder``; none of its weights keeps its usual initial value."""
    import torch

    torch.manual_seed(3)
    model = _model(kind).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tower, family = _tower(model, kind), FAMILIES[kind]
    found = Tower(tower.state_dict())
    with torch.no_grad():
        for layer, norm in family.outputs:
            rows = _run(tower, family, layer, norm)
            found.outputs[layer, norm] = torch.cat(rows).numpy()
    return found


def _model(kind: str) -> Any:
    import transformers as hf

    if kind == "clip":
        return hf.CLIPVisionModel(hf.CLIPVisionConfig(**_TOWER, image_size=28))
    if kind == "siglip":
        return hf.SiglipVisionModel(hf.SiglipVisionConfig(**_TOWER, image_size=30))
    if kind == "siglip2":
        return hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**_TOWER, num_patches=16))
    return hf.WhisperModel(
        hf.WhisperConfig(
            d_model=HIDDEN,
            encoder_layers=NUM_LAYERS,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_source_positions=20,
            num_mel_bins=8,
            vocab_size=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    )


def _tower(model: Any, kind: str) -> Any:
    return model.get_encoder() if kind == "whisper" else model


def _run(tower: Any, family: Family, layer: int, norm: bool) -> list["Tensor"]:
    """Return each input's rows."""
    found = tower(**_arguments(family), output_hidden_states=True)
    rows_BTD = found.last_hidden_state if norm else found.hidden_states[layer]
    if family.kind == "clip":
        return list(rows_BTD[:, 1:])
    if family.kind != "siglip2":
        return list(rows_BTD)
    grids = [(height // PATCH, width // PATCH) for height, width, _ in family.shapes]
    return [_squares(rows, *grid) for rows, grid in zip(rows_BTD, grids, strict=True)]


def _squares(rows_TD: "Tensor", rows: int, columns: int) -> "Tensor":
    """Join squares of 2 x 2 patches, ``[tokens, 4 * D]``; rows behind the grid are padding."""
    grid_RCD = rows_TD[: rows * columns].view(rows, columns, -1)
    return grid_RCD.unfold(0, 2, 2).unfold(1, 2, 2).permute(0, 1, 3, 4, 2).flatten(2).flatten(0, 1)


def _arguments(family: Family) -> dict[str, Any]:
    import torch

    inputs = [torch.from_numpy(each) for each in family.inputs()]
    if family.kind == "whisper":
        return {"input_features": torch.stack(inputs).transpose(1, 2)}
    if family.kind != "siglip2":
        return {"pixel_values": torch.stack(inputs).permute(0, 3, 1, 2)}
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    channels_first = [each.permute(2, 0, 1).numpy() for each in inputs]
    patches = [torch.from_numpy(convert_image_to_patches(x, PATCH)) for x in channels_first]
    lengths = [len(each) for each in patches]
    pixels = torch.nn.utils.rnn.pad_sequence(patches, batch_first=True)
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    grids = torch.tensor([(each.shape[0] // PATCH, each.shape[1] // PATCH) for each in inputs])
    return {
        "pixel_values": pixels,
        "pixel_attention_mask": mask.long(),
        "spatial_shapes": grids,
    }
