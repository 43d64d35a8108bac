"""Tokenizers and processors of an export: the files beside the weights."""

import shutil
from collections.abc import Sequence
from pathlib import Path

PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
"""Files of a checkpoint that an export reads."""

_IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)


def copy_side_files(folder: Path, out: Path) -> None:
    """Copy all that lies beside a checkpoint's weights: a tokenizer, a processor, generation."""
    for pattern in PATTERNS[1:]:
        for file in sorted(folder.glob(pattern)):
            if file.name != "config.json" and not file.name.endswith(".index.json"):
                shutil.copyfile(file, out / file.name)


def copy_tokenizer(folder: Path, out: Path) -> None:
    """Copy a tokenizer's files, and how the LLM generates by default."""
    for name in (*_TOKENIZER_FILES, "generation_config.json"):
        if (folder / name).exists():
            shutil.copyfile(folder / name, out / name)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((folder / name).exists() for name in _TOKENIZER_FILES)


def has_image_processor(folder: Path) -> bool:
    """Whether a folder holds an image processor."""
    return any((folder / name).exists() for name in _IMAGE_FILES)


def save_image_processor(folder: Path, out: Path) -> None:
    """Write the image processor of a checkpoint, which may be a part of a larger processor."""
    from transformers import AutoImageProcessor

    AutoImageProcessor.from_pretrained(folder).save_pretrained(out)


def save_llava_processor(
    out: Path, tokenizer: Path, images: Path, image_token_id: int, patch_size: int, is_clip: bool
) -> None:
    """Write a ``LlavaProcessor`` with its tokenizer and image processor.

    Args:
        out: folder of the LLaVA.
        tokenizer: folder of the LLM's tokenizer.
        images: folder of the tower's image processor.
        image_token_id: id that stands where an image's tokens go.
        patch_size: side of a patch in pixels.
        is_clip: whether a class token is made, and dropped again.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, LlavaProcessor

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    LlavaProcessor(
        AutoImageProcessor.from_pretrained(images),
        loaded,
        patch_size=patch_size,
        vision_feature_select_strategy="default" if is_clip else "full",
        image_token=loaded.convert_ids_to_tokens(image_token_id),
        num_additional_image_tokens=int(is_clip),
        chat_template=loaded.chat_template,
    ).save_pretrained(out)


def folder_with(has: Sequence[Path | None]) -> Path | None:
    """Return the first folder that holds a tokenizer."""
    return next((folder for folder in has if folder is not None and has_tokenizer(folder)), None)
