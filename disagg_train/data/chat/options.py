"""Options of the data kind `chat`: what ``data.options`` of a job file may hold."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from disagg_train.config.base import Config
from disagg_train.data.processors import Modality
from disagg_train.errors import ConfigError

Format = Literal["json", "datasets", "webdataset"]


class SourceOptions(Config):
    """One set of conversations."""

    path: str
    """A .json or .jsonl file, a folder or file of Arrow or Parquet, or a pattern of tar shards."""
    name: str | None = None
    """What the order of samples is made from; `path` where not given. A set that has a name keeps
    its order when it moves."""
    root: str | None = None
    """Folder that images and sounds are named from; the folder of `path` where not given.
    Nothing outside of it is read."""
    format: Format | None = None
    """What `path` is; told from its ending where not given."""
    weight: PositiveFloat = 1.0
    """Visits of each sample per epoch: 2.0 is twice, 0.5 a random half."""
    encoders: dict[Modality, str] = {}
    """Which module takes this set's images and sounds; needed where several could."""


class ChatOptions(Config):
    """All of ``data.options``."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the options that a job file gives.

        Raises:
            ConfigError: they break rules; each is named with the field's path.
        """
        if not values.get("tokenizer"):
            raise ConfigError(
                "data.options.tokenizer: name the folder or hub id of a tokenizer, or give "
                "modules.language.pretrained"
            )
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(dict(e)) for e in error.errors())) from None

    tokenizer: str
    """A folder of a Hugging Face tokenizer, or a hub id; `modules.language.pretrained` where not
    given."""
    chat_template: str | None = None
    """A file with a chat template (Jinja) in place of the tokenizer's own."""
    image_token: str | None = None
    """Token that stands where an image's tokens will be; a usual one where not given."""
    audio_token: str | None = None
    """The same for sound."""
    image_text: str = "{}"
    """What a placeholder becomes; {} is the image's tokens: `<|vision_start|>{}<|vision_end|>`."""
    audio_text: str = "{}"
    """The same for sound."""
    max_tokens: PositiveInt = 4096
    """Longest fused sequence, images' tokens included."""
    max_image_pixels: PositiveInt = 89_478_485
    """An image that declares more is refused as a decompression bomb."""
    sources: tuple[SourceOptions, ...] = Field(min_length=1)
    """What is trained on."""
    evaluation: SourceOptions | NonNegativeInt = 0
    """Held-out conversations, or how many samples of `sources` to hold out."""
    max_new_tokens: PositiveInt = 64
    """Room for a held-out answer, in tokens."""
    index_folder: str | None = None
    """Where sizes indexes are kept; `.disagg_train` below the root where not given."""
    index_workers: PositiveInt | None = None
    """Processes that build an index; one per core where not given."""

    @property
    def sets(self) -> tuple[SourceOptions, ...]:
        """All sets, the held-out one last."""
        return (*self.sources, self.held_out_set) if self.held_out_set else self.sources

    @property
    def num_held_out(self) -> int:
        """How many samples of ``sources`` are held out."""
        return self.evaluation if isinstance(self.evaluation, int) else 0

    @property
    def held_out_set(self) -> SourceOptions | None:
        """The held-out conversations, where they are a set of their own."""
        return self.evaluation if isinstance(self.evaluation, SourceOptions) else None

    @model_validator(mode="after")
    def _paths_differ(self) -> Self:
        paths = [each.name or each.path for each in self.sets]
        twice = sorted({path for path in paths if paths.count(path) > 1})
        if twice:
            raise ConfigError(
                f"data.options: {twice} are listed more than once; list a path once and give it "
                f"a weight"
            )
        return self

    @model_validator(mode="after")
    def _texts_have_a_place(self) -> Self:
        for field in ("image_text", "audio_text"):
            if getattr(self, field).count("{}") != 1:
                raise ConfigError(
                    f"data.options.{field} is {getattr(self, field)!r}; write {{}} once, where "
                    f"the tokens go"
                )
        return self


def _explain(error: Mapping[str, Any]) -> str:
    if isinstance(cause := error.get("ctx", {}).get("error"), ConfigError):
        return str(cause)
    path = ".".join(map(str, ("data", "options", *error["loc"])))
    return f"{path}: {error['msg']}, got {error['input']!r}"
