"""What the data ask of each module, as numbers that a plan is made from. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.planner.sample_costs import ModuleCost, SampleTable
from disagg_train.planner.step_plan import SampleSize

Batches = tuple[tuple[SampleSize, ...], ...]
"""Samples of a step each."""


@dataclass(frozen=True)
class Load:
    """What a mean step asks of a module.

    Args:
        tokens: that it computes on.
        squares: sum of the squared lengths of its sequences.
        spread: standard deviation of a sample's tokens, in means.
    """

    tokens: float
    squares: float
    spread: float


@dataclass(frozen=True)
class Workload:
    """Steps of a data set.

    Args:
        batches: samples of a step each.
        loads: of every module.
    """

    batches: Batches
    loads: Mapping[str, Load]

    @classmethod
    def of(cls, job: JobConfig, batches: Batches) -> "Workload":
        """Return what some steps of a job ask."""
        samples = [sample for batch in batches for sample in batch]
        table = SampleTable.of(samples, list(job.encoders))
        loads = {}
        for name in job.modules:
            tokens_S, squares_S = table.tokens[name], table.squares[name]
            mean = float(tokens_S.mean())
            loads[name] = Load(
                float(tokens_S.sum()) / len(batches),
                float(squares_S.sum()) / len(batches),
                float(tokens_S.std()) / mean if mean else 0.0,
            )
        return cls(batches, loads)

    @property
    def samples_per_step(self) -> float:
        """Mean number of samples of a step."""
        return sum(map(len, self.batches)) / len(self.batches)


@dataclass(frozen=True)
class CostRatio:
    """Ranks' seconds that the encoders ask for, over those of the LLM: its mean and its scatter.

    Args:
        ratio: of the encoders' seconds to the LLM's, of many samples.
        variation: standard deviation of the ratio of one sample's batch, as a part of the ratio;
            that of a batch of b is ``variation / sqrt(b)`` (Entrain, arXiv 2605.27918).
    """

    ratio: float
    variation: float


def cost_ratio(
    job: JobConfig, costs: Mapping[str, ModuleCost], samples: Sequence[SampleSize]
) -> CostRatio:
    """Return the ratio of encoder to LLM work in a data set.

    Args:
        job: says how many ranks share a sample.
        costs: of its modules.
        samples: of the data set.
    """
    table = SampleTable.of(samples, list(job.encoders))
    seconds = {}
    for name, cost in costs.items():
        shared = job.modules[name].parallel.tp * job.modules[name].parallel.cp
        seconds[name] = shared * cost.sample_s(table.tokens[name], table.squares[name])
    encoders_S = np.sum([seconds[name] for name in job.encoders], axis=0)
    language_S = seconds[LANGUAGE]
    mean_encoders, mean_language = float(np.mean(encoders_S)), float(language_S.mean())
    if not mean_encoders:
        return CostRatio(0.0, 0.0)
    apart_S = encoders_S / mean_encoders - language_S / mean_language
    return CostRatio(mean_encoders / mean_language, float(apart_S.std()))
