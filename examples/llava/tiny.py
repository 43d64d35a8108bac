"""Make a LLaVA small enough for a laptop: a SigLIP, a Qwen2.5 with its tokenizer, and photos.

    python examples/llava/tiny.py FOLDER

The weights are random; the photos are drawn: a shape of one colour, and a question about it.
"""

import itertools
import json
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    set_seed,
)

SIDE, PATCH = 32, 8
COLOURS = ("red", "green", "blue", "yellow", "white")
SHAPES = ("circle", "square", "triangle")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make(folder: Path, samples: int = 400, held_out: int = 64) -> None:
    """Write the models, the photos and the two annotation files."""
    set_seed(0)
    tokenizer = save_tokenizer(folder / "qwen")
    save_models(folder, tokenizer)
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for name, first, count in (("train", 0, samples), ("heldout", samples, held_out)):
        entries = [entry(photos, number, draw) for number in range(first, first + count)]
        (folder / f"{name}.json").write_text(json.dumps(entries, indent=1))


def save_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Save a tokenizer of bytes, with Qwen's special tokens and its chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return fast


def save_models(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Save a vision tower with its image processor, and an LLM."""
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
    )
    SiglipVisionModel(vision).save_pretrained(folder / "siglip")
    size = {"height": SIDE, "width": SIDE}
    SiglipImageProcessor(size=size).save_pretrained(folder / "siglip")
    language = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        eos_token_id=tokenizer.eos_token_id,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    Qwen2ForCausalLM(language).save_pretrained(folder / "qwen")


def entry(photos: Path, number: int, draw: random.Random) -> dict[str, object]:
    """Draw a photo and return its annotation, as LLaVA's files have them."""
    colour, shape = draw.choice(list(itertools.product(COLOURS, SHAPES)))
    side = draw.randrange(40, 90)
    image = Image.new("RGB", (side, side), "black")
    inside = (side // 4, side // 4, 3 * side // 4, 3 * side // 4)
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse(inside, fill=colour)
    elif shape == "square":
        pen.rectangle(inside, fill=colour)
    else:
        pen.polygon([(side // 2, inside[1]), (inside[0], inside[3]), inside[2:]], fill=colour)
    image.save(photos / f"{number}.png")
    return {
        "id": f"photo-{number}",
        "image": f"{number}.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": f"{colour} {shape}"},
        ],
    }


if __name__ == "__main__":
    make(Path(sys.argv[1]))
