"""GPUs by name: what their data sheets promise, and how much of it training achieves. Pure.

Sources are the vendor's data sheets: "H100 Tensor Core GPU" (SXM5), "H200 Tensor Core GPU" (SXM),
"A100 80GB Tensor Core GPU" (SXM4), "L40S GPU" and "HGX B200". FLOP/s are of dense bf16 and fp16,
half of what a sheet says "with sparsity", and of fp32 without TF32, which torch does not take by
itself. NVLink and PCIe are given to and fro together there; here is one
direction. The network is what a node of 8 GPUs is sold with: a 400 Gb/s adapter for each GPU of
the H100 and newer, 200 Gb/s before, and for the L40S.

Efficiencies are the same for all GPUs and all models. They are of what runs undisturbed; waiting,
collectives and small work are counted apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from disagg_train.config.job import JobConfig, Precision
from disagg_train.errors import ConfigError
from disagg_train.planner.machine import Hardware, Machine

MATRIX_EFFICIENCY = 0.6
"""Of the dense peak, in matrices of a training step under a GPU's power limit."""
LINK_EFFICIENCY = 0.8
"""Of NVLink, PCIe and the network, in large messages."""
MEMORY_EFFICIENCY = 0.8
"""Of the memory's bandwidth, in kernels that read and write."""
USABLE_MEMORY = 0.9
"""Of the memory; the rest is the driver's, NCCL's, and lost between tensors."""
LATENCY_S = 10e-6
"""Until a message, or a collective of a few ranks, begins to move."""
LAUNCH_S = 30e-6
"""Of a layer's pass: the beginnings and ends of its kernels, of which there are a dozen."""


@dataclass(frozen=True)
class Gpu:
    """A GPU in a node, as data sheets have it.

    Args:
        flops_per_s: dense, in bf16 or fp16.
        fp32_flops_per_s: in fp32.
        memory_bytes: of its memory.
        memory_bytes_per_s: of its memory.
        node_bytes_per_s: to another GPU of the node, one direction.
        network_bytes_per_s: to other nodes, one direction, of each GPU.
        per_node: GPUs of a node.
    """

    flops_per_s: float
    fp32_flops_per_s: float
    memory_bytes: float
    memory_bytes_per_s: float
    node_bytes_per_s: float
    network_bytes_per_s: float
    per_node: int = 8

    def machine(self, precision: Precision = "bf16") -> Machine:
        """Return what a rank on such a GPU achieves."""
        peak = self.fp32_flops_per_s if precision == "fp32" else self.flops_per_s
        return Machine(
            flops_per_s=MATRIX_EFFICIENCY * peak,
            link_bytes_per_s=LINK_EFFICIENCY * self.network_bytes_per_s,
            latency_s=LATENCY_S,
            memory_bytes_per_s=MEMORY_EFFICIENCY * self.memory_bytes_per_s,
            node_bytes_per_s=LINK_EFFICIENCY * self.node_bytes_per_s,
            ranks_per_node=self.per_node,
            memory_bytes=USABLE_MEMORY * self.memory_bytes,
            launch_s=LAUNCH_S,
        )


GPUS: Mapping[str, Gpu] = {
    "H100": Gpu(989e12, 67e12, 80e9, 3.35e12, 450e9, 50e9),
    "H200": Gpu(989e12, 67e12, 141e9, 4.8e12, 450e9, 50e9),
    "A100": Gpu(312e12, 19.5e12, 80e9, 2.039e12, 300e9, 25e9),
    "L40S": Gpu(362e12, 91.6e12, 48e9, 0.864e12, 32e9, 25e9),
    "B200": Gpu(2250e12, 75e12, 180e9, 8e12, 900e9, 50e9),
}
"""By the names that Ray has for them."""


def gpu(name: str) -> Gpu:
    """Return a GPU by its name.

    Raises:
        ConfigError: nothing is known of it.
    """
    if name not in GPUS:
        raise ConfigError(
            f"nothing is known of the GPU {name!r}; use one of {', '.join(GPUS)}, or measure it: "
            f"disagg-train profile"
        )
    return GPUS[name]


def hardware_of(job: JobConfig, gpu_kind: str) -> Hardware:
    """Return what a job's groups run on.

    Args:
        job: its groups' own ``accelerator`` goes before ``gpu_kind``.
        gpu_kind: name of the GPUs of all other groups.

    Raises:
        ConfigError: nothing is known of a GPU.
    """
    precision = job.train.precision
    own = {
        name: gpu(group.accelerator).machine(precision)
        for name, group in job.groups.items()
        if group.accelerator is not None
    }
    return Hardware(gpu(gpu_kind).machine(precision), own)


def named_hardware(job: JobConfig) -> Hardware | None:
    """Return what a job's groups run on, if each names a GPU of which something is known."""
    names = {name: group.accelerator or "" for name, group in job.groups.items()}
    if not set(names.values()) <= GPUS.keys():
        return None
    precision = job.train.precision
    own = {group: GPUS[name].machine(precision) for group, name in names.items()}
    return Hardware(own[job.language.group], own)
