"""Model FLOPs of a step, and the part of the GPUs' peak that they are (MFU). Pure.

Model FLOPs are those of the samples' own tokens by the sizes of the modules (``stage_parts``):
forwards, and what of a backward trainable weights need. Padding, and what is computed again to
save memory, are not counted. The peak is the data sheet's, dense and in the job's precision.
"""

from collections.abc import Mapping, Sequence

from disagg_train.config.job import JobConfig
from disagg_train.errors import ConfigError
from disagg_train.planner.gpus import GPUS
from disagg_train.planner.sample_costs import SampleTable
from disagg_train.planner.stage_parts import Flops, Part, known_module, of_stages
from disagg_train.planner.step_plan import SampleSize

_NOTHING = Flops(0.0)


class Utilization:
    """Says which part of its GPUs' peak a job's step reached.

    Args:
        job: sizes of the modules and of the groups.
        gpu_kinds: per group, the kind of its GPUs; groups whose kind nobody knows may lack.
    """

    def __init__(self, job: JobConfig, gpu_kinds: Mapping[str, str]) -> None:
        self._encoders = list(job.encoders)
        self._peak = peak_flops_per_s(job, gpu_kinds)
        self._flops = None if self._peak is None else module_flops(job)

    def mfu(self, samples: Sequence[SampleSize], step_time_s: float) -> float | None:
        """Return the model FLOPs of some samples over the peak; None where either is not known."""
        if self._peak is None or self._flops is None or not step_time_s:
            return None
        return step_flops(self._flops, samples, self._encoders) / (self._peak * step_time_s)


def module_flops(job: JobConfig) -> dict[str, Flops] | None:
    """Return what a token costs each module, and a squared token of a sequence.

    Returns:
        None where an encoder is of a class of one's own, whose sizes nobody knows.
    """
    found = {}
    for name in job.modules:
        try:
            module = known_module(job, name)
        except ConfigError:
            return None
        kept = module.model_copy(update={"recompute": "none"})
        found[name] = sum(of_stages(job, kept, _of_parts), start=_NOTHING)
    return found


def step_flops(
    flops: Mapping[str, Flops], samples: Sequence[SampleSize], encoders: Sequence[str]
) -> float:
    """Return the model FLOPs of some samples, of all modules together."""
    table = SampleTable.of(samples, encoders)
    return sum(
        of_module.per_token * float(table.tokens[name].sum())
        + of_module.per_square * float(table.squares[name].sum())
        for name, of_module in flops.items()
    )


def peak_flops_per_s(job: JobConfig, gpu_kinds: Mapping[str, str]) -> float | None:
    """Return the peak of all groups' GPUs together; None where nothing is known of one."""
    peak = 0.0
    for name, group in job.groups.items():
        gpu = GPUS.get(gpu_kinds.get(name, ""))
        if gpu is None:
            return None
        of_one = gpu.fp32_flops_per_s if job.train.precision == "fp32" else gpu.flops_per_s
        peak += group.ranks * group.gpus_per_rank * of_one
    return peak


def _of_parts(parts: list[Part]) -> Flops:
    passes = [(part.forward, part.backward_input, part.backward_weight) for part in parts]
    return sum((each for part in passes for each in part), start=_NOTHING)
