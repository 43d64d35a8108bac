"""``disagg-train export``: a run's checkpoint -> folders that transformers loads as they are."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from disagg_train.checkpoint.reader import CheckpointReader
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.config.modules import ClipModule, EncoderModule, SiglipModule
from disagg_train.config.pretrained import checkpoint_folder
from disagg_train.engine.earlier import EarlierWeights
from disagg_train.errors import CheckpointError, ConfigError
from disagg_train.modules.hf.configs import architecture, llava_config
from disagg_train.modules.hf.export import SHARD_BYTES, SafetensorsWriter
from disagg_train.modules.hf.files import (
    PATTERNS,
    copy_side_files,
    copy_tokenizer,
    folder_with,
    has_image_processor,
    save_image_processor,
    save_llava_processor,
)
from disagg_train.modules.hf.trained import PROJECTOR, Exported, exported

Dtype = Literal["original", "fp32", "bf16"]
Layout = Literal["llava", "modules", "both"]

_DTYPES = {"original": None, "fp32": torch.float32, "bf16": torch.bfloat16}
_COMPUTED_IN = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export(
    run: Path,
    out: Path,
    dtype: Dtype = "original",
    layout: Layout = "both",
    image_token_id: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Write a run's trained model for transformers.

    ``out`` itself becomes a LLaVA (``LlavaForConditionalGeneration``), ``out/<module>`` each
    module alone. Files that were written are there all together or not at all.

    Args:
        run: output folder of a run, or its checkpoint folder.
        out: folder to make.
        dtype: precision to write in; ``original`` is each tensor's own in the checkpoint that
            the run began with, fp32 for what was drawn.
        layout: which of the two to write.
        image_token_id: id that stands where an image's tokens go; asked of ``data.kind: chat``
            where not given.
        shard_bytes: most bytes of a file.

    Returns:
        What was written, and what was not and why, for people.

    Raises:
        CheckpointError: the run has no sound checkpoint, or ``out`` is there already.
        ConfigError: the model has no like in transformers.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} is there already; name a new folder")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with CheckpointReader(run) as checkpoint, contextlib.ExitStack() as files:
            checkpoint.verify()
            writer = _Export(checkpoint, files, partial, dtype, shard_bytes)
            notes = writer.write(layout, image_token_id)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return notes


class _Export:
    """The parts of one export.

    Args:
        checkpoint: of the run.
        files: keeps pretrained checkpoints open.
        out: folder to write to.
        dtype: as in ``export``.
        shard_bytes: as in ``export``.
    """

    def __init__(
        self,
        checkpoint: CheckpointReader,
        files: contextlib.ExitStack,
        out: Path,
        dtype: Dtype,
        shard_bytes: int,
    ) -> None:
        self._job = JobConfig.model_validate(checkpoint.job)
        self._out, self._shard_bytes = out, shard_bytes
        self._earlier = EarlierWeights(checkpoint)
        dtypes = _DTYPES[dtype], _COMPUTED_IN[self._job.train.precision]
        self._parts = {
            name: exported(module, self._paths(name), self._reader(name), dtypes, files)
            for name, module in self._job.modules.items()
        }

    def _paths(self, module: str) -> list[str]:
        prefix = f"{module}."
        return [n.removeprefix(prefix) for n in self._earlier.names if n.startswith(prefix)]

    def _reader(self, module: str) -> Any:
        return lambda path: self._earlier.read_merged(f"{module}.{path}")

    def write(self, layout: Layout, image_token_id: int | None) -> list[str]:
        """Write what a layout asks for; return what there is to say."""
        notes = []
        if layout != "modules":
            try:
                notes.append(self._write_llava(image_token_id))
            except ConfigError as error:
                if layout == "llava":
                    raise
                notes.append(f"no LLaVA was written: {error}")
        if layout != "llava":
            notes += [self._write_module(name) for name in self._parts]
        return notes

    def _write_module(self, name: str) -> str:
        part, folder = self._parts[name], self._out / name
        folder.mkdir()
        self._write_rest(name)
        if part.config is None:
            _write_json(folder / "module.json", part.module.model_dump(mode="json"))
            return f"{name}/: weights by their own names; transformers has no such model"
        named = part.weights
        with SafetensorsWriter(folder, self._shard_bytes) as writer:
            as_it_came = part.whole is not None
            stream = named.tensors_as_they_came if as_it_came else named.tensors
            for tensor_name, tensor in stream(part.alone):
                writer.add(tensor_name, tensor)
        config = part.whole or {
            **part.config,
            "architectures": [architecture(part.config["model_type"])],
        }
        _write_config(folder, config, writer.dtype)
        self._write_side_files(name)
        return f"{name}/: {(config.get('architectures') or [config['model_type']])[0]}"

    def _write_rest(self, name: str) -> None:
        """Write a projector, and the weights of a model that transformers has not."""
        part, folder = self._parts[name], self._out / name
        rest = dict(part.weights.rest())
        projector = {_projector_name(p): t for p, t in rest.items() if p.startswith(PROJECTOR)}
        others = {p: t.contiguous() for p, t in rest.items() if not p.startswith(PROJECTOR)}
        if projector:
            save_file(projector, folder / "projector.safetensors", metadata={"format": "pt"})
        if others and part.config is not None:
            raise CheckpointError(
                f"modules.{name}: {sorted(others)[:3]} have no names in transformers; this "
                f"checkpoint is not of a {part.module.model_dump()['kind']!r} as it is run here"
            )
        if others:
            save_file(others, folder / "model.safetensors", metadata={"format": "pt"})

    def _write_side_files(self, name: str) -> None:
        part, folder = self._parts[name], self._out / name
        if part.whole is not None and part.folder is not None:
            copy_side_files(part.folder, folder)
        elif name != LANGUAGE and part.folder is not None and has_image_processor(part.folder):
            save_image_processor(part.folder, folder)
        if name == LANGUAGE:
            self._write_tokenizer(folder)

    def _write_tokenizer(self, folder: Path) -> None:
        tokenizer = self._tokenizer()
        if tokenizer is not None:
            copy_tokenizer(tokenizer, folder)
        template = self._job.data.options.get("chat_template")
        if self._job.data.kind == "chat" and template is not None:
            if not Path(template).is_file():
                raise ConfigError(f"data.options.chat_template: there is no file {template!r} now")
            shutil.copyfile(template, folder / "chat_template.jinja")

    def _tokenizer(self) -> Path | None:
        """Return the folder of the tokenizer that the LLM was trained with."""
        named = self._job.data.options.get("tokenizer") if self._job.data.kind == "chat" else None
        own = checkpoint_folder(named, PATTERNS) if named else None
        return folder_with([own, self._parts[LANGUAGE].folder])

    def _write_llava(self, image_token_id: int | None) -> str:
        name, module, part = self._vision()
        token = self._image_token(image_token_id)
        language = self._parts[LANGUAGE]
        assert part.config is not None
        assert language.config is not None
        with SafetensorsWriter(self._out, self._shard_bytes) as writer:
            for tensor_name, tensor in self._llava_tensors(part, language):
                writer.add(tensor_name, tensor)
        config = llava_config(
            module, part.config, language.config, token, part.weights.original is not None
        )
        _write_config(self._out, config, writer.dtype)
        self._write_tokenizer(self._out)
        tokenizer = self._tokenizer()
        note = f"LlavaForConditionalGeneration of {name} and {LANGUAGE}"
        if tokenizer is None or part.folder is None or not has_image_processor(part.folder):
            return f"{note}; no processor: there is no tokenizer or no image processor to put in"
        patch, is_clip = module.model.patch_size, isinstance(module, ClipModule)
        save_llava_processor(self._out, self._out, part.folder, token, patch, is_clip)
        return f"{note}, with its processor"

    def _llava_tensors(self, vision: Exported, language: Exported) -> Iterator[tuple[str, Tensor]]:
        yield from vision.weights.tensors(lambda name: f"vision_tower.vision_model.{name}")
        for path, tensor in vision.weights.rest():
            yield f"multi_modal_projector.{_projector_name(path)}", tensor
        yield from language.weights.tensors(lambda name: f"language_model.{language.alone(name)}")

    def _vision(self) -> tuple[str, ClipModule | SiglipModule, Exported]:
        """Return the one encoder that a LLaVA can have.

        Raises:
            ConfigError: no LLaVA is like this model.
        """
        if len(self._job.encoders) != 1:
            raise ConfigError(
                f"a LLaVA has one encoder, this model has {sorted(self._job.encoders)}"
            )
        ((name, module),) = self._job.encoders.items()
        if not isinstance(module, ClipModule | SiglipModule):
            raise ConfigError(
                f"modules.{name}.kind is {_kind(module)!r}; a LLaVA's is clip or siglip"
            )
        if (module.projector.kind, module.projector.merge) != ("mlp", 1):
            raise ConfigError(
                f"modules.{name}.projector is of kind {module.projector.kind!r} with merge="
                f"{module.projector.merge}; a LLaVA's is mlp with merge=1"
            )
        return name, module, self._parts[name]

    def _image_token(self, given: int | None) -> int:
        vocabulary = self._job.language.model.vocab_size
        found = self._trained_image_token() if given is None else given
        if not 0 <= found < vocabulary:
            raise ConfigError(f"the image token's id {found} is not below vocab_size={vocabulary}")
        return found

    def _trained_image_token(self) -> int:
        from disagg_train.data.chat.options import ChatOptions
        from disagg_train.data.chat.tokens import load_tokenizer

        if self._job.data.kind != "chat":
            raise ConfigError(
                f"data.kind is {self._job.data.kind!r}, which does not tell the id that stands "
                f"where an image's tokens go; give --image-token-id"
            )
        tokenizer = {"tokenizer": self._job.language.pretrained}
        options = ChatOptions.model_validate(tokenizer | self._job.data.options)
        loaded = load_tokenizer(options)
        found = int(loaded.placeholders["image"])
        if found == loaded.padding:
            raise ConfigError(
                "the tokenizer has no token for images, so its padding stood where an image's "
                "tokens go, which a LLaVA's batches would mistake; give --image-token-id with an "
                "id that no text uses"
            )
        return found


def _projector_name(path: str) -> str:
    """Return LLaVA's name of a projector's weight; a linear one's is its own."""
    name = path.removeprefix(PROJECTOR).removeprefix("encoder.")
    return name.replace("linear_fc", "linear_")


def _kind(module: EncoderModule) -> str:
    return str(getattr(module, "kind", ""))


def _write_config(folder: Path, config: dict[str, Any], dtype: str) -> None:
    """Write a config that names the precision of most of the weights."""
    kept = {name: value for name, value in config.items() if name != "torch_dtype"}
    _write_json(folder / "config.json", kept | {"dtype": dtype})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
