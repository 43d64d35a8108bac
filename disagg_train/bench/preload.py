"""What every process of the benchmarks imports, once for all of them.

The fork server imports this before it forks; imports alone would take most of a run.
"""

import importlib
import warnings

from disagg_train.modules import cpu

_HEAVY = (
    "megatron.core.pipeline_parallel.bridge_communicator",
    "disagg_train.bench.boundary_rank",
    "disagg_train.bench.megatron_pipeline",
    "disagg_train.engine.rank",
)

warnings.simplefilter("ignore")  # Megatron says on every rank what is not installed.
cpu.install()
for name in _HEAVY:
    importlib.import_module(name)
