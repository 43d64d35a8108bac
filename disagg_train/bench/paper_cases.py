"""The kinds of jobs that Heterogeneous Parallelism (arXiv 2605.27678) tells apart, as job files.

The paper's tables were not at hand. Sizes and settings follow its authors' throughput benchmark
(``benchmarks/mimo_throughput`` of github.com/yashaswikarnati/Megatron-LM): its encoders, one token
of the LLM for each of the encoder's, images of 1,024 tokens, contexts of 8k, two nodes for 6B + 7B
with four sequences per GPU, and a node of encoders beside those of a large LLM. The 7B is Vicuna,
which the paper names; of its 120B only the size is known, so Mistral Large 2 stands in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from disagg_train.bench.model_sizes import MISTRAL_LARGE, Sizes, gpt, vit
from disagg_train.bench.spreads import ENCODER
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.config.load import load_job
from disagg_train.planner.step_plan import SampleSize, Slot


@dataclass(frozen=True)
class Case:
    """A kind of job.

    Args:
        encoder: its sizes.
        language: the LLM's.
        images: of a sample.
        image_tokens: of an image, in the encoder and in the LLM.
        sequence_tokens: of a sample, images and text together.
        samples: of a step.
        gpus: of one layout for all, and of colocated modules.
        gpus_disjoint: of disjoint groups.
        expected: what the paper says of it.
        least_cp: the LLM's context-parallel degree is no smaller.
    """

    encoder: Sizes
    language: Sizes
    images: int
    image_tokens: int
    sequence_tokens: int
    samples: int
    gpus: int
    gpus_disjoint: int
    expected: str
    least_cp: int = 1

    def job(self, name: str) -> JobConfig:
        """Return the job; how it is laid out does not matter."""
        return load_job(
            {
                "name": name,
                "groups": {"all": {"ranks": 1}},
                "modules": {ENCODER: self._encoder(), LANGUAGE: self._language()},
                "train": {
                    "steps": 1,
                    "global_batch": self.samples,
                    "precision": "bf16",
                    "optimizer": {"lr": 1e-4},
                },
            }
        )

    def _encoder(self) -> dict[str, Any]:
        model = dict(self.encoder)
        return {"kind": "vit", "group": "all", "model": model, "projector": {"merge": 1}}

    def _language(self) -> dict[str, Any]:
        return {"kind": "gpt", "group": "all", "model": dict(self.language)}

    def batch(self) -> tuple[SampleSize, ...]:
        """Return a step's samples: equal, for the paper's gains are of layouts, not of balance."""
        size = self.image_tokens
        slots = {ENCODER: tuple(Slot(at * size, size) for at in range(self.images))}
        text = self.sequence_tokens - self.images * size
        computed = {ENCODER: (size,) * self.images}
        return tuple(
            SampleSize(key, self.sequence_tokens, text, slots, computed)
            for key in range(self.samples)
        )


_VIT_LARGE = vit(24, 1024, 16)
_VIT_6B = vit(48, 3072, 24)
_LLM_7B = gpt(32, 4096, 32, 32, 11008, 32000)

CASES: Mapping[str, Case] = MappingProxyType(
    {
        "0.3B + 7B, 2k tokens, 28% images": Case(
            _VIT_LARGE, _LLM_7B, 1, 576, 2048, 128, 16, 16, "about nothing"
        ),
        "6B + 7B, 8k tokens, 75% images": Case(
            _VIT_6B, _LLM_7B, 6, 1024, 8192, 64, 16, 16, "clear, with tp 1 and more dp for encoders"
        ),
        "6B + 7B, 128k tokens, 50% images, cp >= 8": Case(
            _VIT_6B, _LLM_7B, 64, 1024, 131072, 64, 64, 64, "most when colocated", least_cp=8
        ),
        "6B + 123B, 2k tokens, 50% images": Case(
            _VIT_6B, MISTRAL_LARGE, 1, 1024, 2048, 2048, 256, 264, "from disjoint placement"
        ),
    }
)
"""By name."""
