"""A whole vision-language model on one device: ours, colocated, against plain transformers.

Both train SigLIP, a two-layer projector and Qwen2.5 of the same sizes on the same samples, in
microbatches of the same samples; weights are random, and only seconds are compared. Theirs keeps
weights and Adam's averages in the precision of the arithmetic, ours in fp32 beside it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from actors.rendezvous import RendezvousHost
from disagg_train.bench.alternation import Paired, measure, num_steps
from disagg_train.bench.jobs import with_steps
from disagg_train.bench.machine import commit, hardware
from disagg_train.bench.model_sizes import SO400M
from disagg_train.bench.torchrun import PlainRank, job_plans, make_ours
from disagg_train.config.job import LANGUAGE, JobConfig, Precision
from disagg_train.config.load import load_job
from disagg_train.config.modules import SiglipModule
from disagg_train.data.source import DataSource, open_source
from disagg_train.driver.schedules import job_schedules
from disagg_train.engine.setup import RankSetup
from disagg_train.modules.specs import DTYPES
from disagg_train.planner.step_plan import StepPlan

Sizes = Mapping[str, Any]

SO400M_384: Sizes = {**SO400M, "image_size": 384}
QWEN_1_5B: Sizes = {
    "num_layers": 28,
    "hidden_size": 1536,
    "num_attention_heads": 12,
    "num_query_groups": 2,
    "ffn_hidden_size": 8960,
    "vocab_size": 151_936,
    "rotary_base": 1e6,
    "norm_eps": 1e-6,
    "qkv_bias": True,
    "tie_embeddings": True,
}
TINY_VISION: Sizes = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TINY_LANGUAGE: Sizes = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "vocab_size": 256,
    "qkv_bias": True,
    "tie_embeddings": True,
}
_PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12}
"""Dense bf16, of the data sheets."""


@dataclass(frozen=True)
class VlmResult:
    """What was measured.

    Args:
        times: ours against theirs.
        tokens_per_s: positions of the LLM, images' included, by contestant.
        mfu: model FLOPs per second / the device's peak, by contestant; None where that is unknown.
        device: what computed.
        precision: of the arithmetic.
    """

    times: Paired
    tokens_per_s: Mapping[str, float]
    mfu: Mapping[str, float] | None
    device: str
    precision: str

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {**asdict(self), "hardware": hardware(), "commit": commit()}


def vlm_job(
    vision: Sizes = SO400M_384,
    language: Sizes = QWEN_1_5B,
    precision: Precision = "bf16",
    text_tokens: int = 295,
) -> JobConfig:
    """Return both modules on one rank, eight samples a step in four microbatches."""
    options = {
        "side": vision["image_size"],
        "text_tokens": text_tokens,
        "vocab_size": language["vocab_size"],
    }
    return load_job(
        {
            "name": "bench-vlm",
            "groups": {LANGUAGE: {"ranks": 1}},
            "modules": {
                "vision": {"kind": "siglip", "group": LANGUAGE, "model": dict(vision)},
                LANGUAGE: {"kind": "gpt", "group": LANGUAGE, "model": dict(language)},
            },
            "data": {"kind": "disagg_train.bench.photos:EqualPhotos", "options": options},
            "train": {
                "steps": 1,
                "global_batch": 8,
                "microbatches": 4,
                "window": 1,
                "precision": precision,
                "trace_steps": 0,
                "optimizer": {"lr": 1e-5},
                "evaluation": {"samples": 0},
            },
        }
    )


def run_vlm(job: JobConfig, blocks: int) -> VlmResult:
    """Train both in alternation and compare."""
    job = with_steps(job, num_steps(blocks))
    ours, theirs = Ours(job), Transformers(job)
    try:
        times = measure(ours, theirs, blocks)
    finally:
        ours.close()
    plan = next(job_plans(job))
    tokens = sum(sample.sequence_tokens for sample in plan.samples)
    seconds = {ours.name: times.ours_ms / 1e3, theirs.name: times.other_ms / 1e3}
    flops, peak = _model_flops(theirs, plan), _peak_flops()
    return VlmResult(
        times,
        {name: tokens / each_s for name, each_s in seconds.items()},
        {name: flops / each_s / peak for name, each_s in seconds.items()} if peak else None,
        torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        job.train.precision,
    )


class Ours:
    """One rank of ours in this process."""

    name = "ours"

    def __init__(self, job: JobConfig) -> None:
        self.losses: list[float] = []
        self._host = RendezvousHost("127.0.0.1")
        training, evaluation = job_schedules(job)
        rendezvous = self._host.next_epoch()
        setup = RankSetup(job, rendezvous, LANGUAGE, 0, training.ops[0], evaluation.ops[0])
        self._rank: PlainRank = make_ours(setup)

    def run(self, count: int) -> float:
        """Train the next ``count`` steps; return seconds per step."""
        begin_s = perf_counter()
        self.losses += self._rank.run(count)
        _finish()
        return (perf_counter() - begin_s) / count

    def close(self) -> None:
        """Leave all groups."""
        self._rank.close()


class Transformers:
    """The same sizes as a LLaVA of transformers, with torch's fused Adam."""

    name = "transformers"

    def __init__(self, job: JobConfig) -> None:
        self.losses: list[float] = []
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._source: DataSource = open_source(job)
        self._plans: Iterator[StepPlan] = job_plans(job)
        self.model = _llava(job).to(self._device, DTYPES[job.train.precision])
        self._adam = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)

    def run(self, count: int) -> float:
        """Train the next ``count`` steps; return seconds per step."""
        begin_s = perf_counter()
        plans = [*islice(self._plans, count), None]
        self.losses += [self._step(plan) for plan, _ in pairwise(plans) if plan]
        _finish()
        return (perf_counter() - begin_s) / count

    def _step(self, plan: StepPlan) -> float:
        total = 0.0
        for microbatch in range(plan.num_microbatches):
            keys = [plan.samples[i].key for i in plan.held(LANGUAGE, microbatch, 0)]
            loss = self._loss_sum(keys)
            (loss / plan.num_target_tokens).backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._adam.step()
        self._adam.zero_grad()
        return total

    def _loss_sum(self, keys: list[int]) -> Tensor:
        samples = [self._source.load(key) for key in keys]
        tokens_BS = torch.stack([torch.from_numpy(s.token_ids_S) for s in samples])
        labels_BS = torch.stack([torch.from_numpy(s.labels_S) for s in samples]).to(self._device)
        photos = [torch.from_numpy(s.inputs["vision"][0]).permute(2, 0, 1) for s in samples]
        pixels = torch.stack(photos).to(self._device, self.model.dtype)
        logits_BSV = self.model(input_ids=tokens_BS.to(self._device), pixel_values=pixels).logits
        return torch.nn.functional.cross_entropy(
            logits_BSV.flatten(0, 1).float(), labels_BS.flatten(), ignore_index=-1, reduction="sum"
        )


def _llava(job: JobConfig) -> Any:
    """Build transformers' LLaVA of the job's sizes."""
    from transformers import (
        LlavaConfig,
        LlavaForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    tower, language = job.encoders["vision"], job.language.model
    assert isinstance(tower, SiglipModule)
    vision = tower.model
    towers = {
        "vision_config": SiglipVisionConfig(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.ffn_size,
            num_hidden_layers=vision.num_layers,
            num_attention_heads=vision.num_attention_heads,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            vision_use_head=False,
        ),
        "text_config": Qwen2Config(
            vocab_size=language.vocab_size,
            hidden_size=language.hidden_size,
            intermediate_size=language.ffn_size,
            num_hidden_layers=language.num_layers,
            num_attention_heads=language.num_attention_heads,
            num_key_value_heads=language.query_groups,
            tie_word_embeddings=language.tie_embeddings,
        ),
    }
    config = LlavaConfig(
        **towers,
        image_token_index=0,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=language.tie_embeddings,
    )
    return LlavaForConditionalGeneration(config)


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_flops() -> float | None:
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for gpu, peak in _PEAK_FLOPS.items() if gpu in name), None)


def _model_flops(theirs: Transformers, plan: StepPlan) -> float:
    """Return 6 FLOPs per weight and token that passes it, attention's products left out."""
    patches = sum(sum(inputs) for s in plan.samples for inputs in s.input_tokens.values())
    tokens = sum(sample.sequence_tokens for sample in plan.samples)
    vision = sum(p.numel() for n, p in theirs.model.named_parameters() if "vision_tower" in n)
    whole = sum(p.numel() for p in theirs.model.parameters())
    return 6.0 * (vision * patches + (whole - vision) * tokens)
