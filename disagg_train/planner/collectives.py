"""What layers cost a rank beside the products of their matrices: memory, collectives, launches.

- A backward reads and writes 1.5 times what a forward does: gradients come beside the values.
- Sums over tp are rings: each rank sends 2 * (tp - 1) / tp of the rows. None is taken to hide
  behind products of matrices, of which Megatron starts some at the same time.
- Keys and values go around the cp ranks once in a forward and, with their gradients, twice in a
  backward. The whole is counted, though attention may hide it: what sticks out is no sum over
  samples, which costs have to be. Long sequences are quicker than this says.
- All of an exchange between experts goes at the speed of its slowest link.
- A pass reads the weights once per microbatch. Their gradients are written, read, and added to
  sums in fp32 (``gradient_accumulation_fusion`` is off).
"""

from dataclasses import dataclass

from disagg_train.config.modules import ParallelConfig
from disagg_train.planner.machine import Machine
from disagg_train.planner.sample_costs import PassCost
from disagg_train.planner.traffic import Sent, Traffic

FP32_BYTES = 4
NOTHING = PassCost(0.0)
_BACK = 1.5
_RINGS_BACK = 2


@dataclass(frozen=True)
class _Way:
    """A kind of collective: seconds per value of a lane's token, and of each collective."""

    value_s: float
    latency_s: float

    def cost(self, sent: Sent, times: int = 1) -> PassCost:
        """Return what collectives cost that run so many times."""
        return PassCost(
            times * self.value_s * sent.values,
            per_microbatch_s=times * self.latency_s * sent.times,
        )


class LayerCosts:
    """What traffic costs the ranks of one module.

    Nothing but launches where the machine says nothing of nodes.

    Args:
        parallel: the module's degrees.
        machine: what its ranks run on.
        value_bytes: of an activation and of a weight.
    """

    def __init__(self, parallel: ParallelConfig, machine: Machine, value_bytes: int) -> None:
        tp, cp, ep = parallel.tp, parallel.cp, parallel.ep
        self._machine, self._value_bytes = machine, value_bytes
        row_bytes = value_bytes / cp
        copies = tp if parallel.sequence_parallel else 1
        self._moved_s = row_bytes / copies / machine.memory_bytes_per_s
        self._moved_cut_s = row_bytes / tp / machine.memory_bytes_per_s
        ring_s = row_bytes * (tp - 1) / tp / machine.ring_bytes_per_s(1, tp)
        latency_s = machine.latency_s if tp > 1 else 0.0
        self._sum = _Way(2 * ring_s, latency_s)
        self._gather = _Way(ring_s, latency_s) if copies > 1 else _Way(0.0, 0.0)
        self._around_cp = _Way(
            row_bytes * (cp - 1) / tp / machine.hop_bytes_per_s(tp, cp),
            machine.latency_s * (cp - 1),
        )
        self._to_experts = _Way(
            row_bytes * (ep - 1) / ep / tp / machine.hop_bytes_per_s(tp, ep),
            machine.latency_s if ep > 1 else 0.0,
        )

    def forward(self, traffic: Traffic, weights: float) -> PassCost:
        """Return what a forward costs.

        Args:
            traffic: of a part of a stage.
            weights: of the part, on a rank.
        """
        own = self._of_rank(traffic, 1.0, self._value_bytes * weights)
        if not self._machine.knows_nodes:
            return own
        routed = self._to_experts.cost(traffic.routed)
        return own + self._sum.cost(traffic.sums) + routed + self.ring(traffic)

    def ring(self, traffic: Traffic) -> PassCost:
        """Return what keys and values cost that go around once."""
        if not self._machine.knows_nodes:
            return NOTHING
        return self._around_cp.cost(traffic.ring)

    def backward_input(self, traffic: Traffic, weights: float) -> PassCost:
        """Return what the gradients of the inputs cost; arguments as in ``forward``."""
        own = self._of_rank(traffic, _BACK, self._value_bytes * weights)
        if not self._machine.knows_nodes:
            return own
        around = self._around_cp.cost(traffic.ring, _RINGS_BACK)
        routed = self._to_experts.cost(traffic.routed)
        return own + self._sum.cost(traffic.sums_back) + routed + around

    def backward_weight(self, traffic: Traffic, weights: float) -> PassCost:
        """Return what the gradients of the weights cost; arguments as in ``forward``."""
        gradient_bytes = 2 * self._value_bytes + 2 * FP32_BYTES
        own = self._of_rank(traffic, 0.0, gradient_bytes * weights)
        return own + self._gather.cost(traffic.gathers) if self._machine.knows_nodes else own

    def _of_rank(self, traffic: Traffic, moved: float, num_bytes: float) -> PassCost:
        """Return launches, and what a rank's own memory takes.

        Args:
            traffic: of a part of a stage.
            moved: how many times as much as in a forward element-wise work moves.
            num_bytes: that are moved whatever the tokens are.
        """
        launches_s = self._machine.launch_s * traffic.launches
        if not self._machine.knows_nodes:
            return PassCost(0.0, per_microbatch_s=launches_s)
        values_s = self._moved_s * traffic.moved + self._moved_cut_s * traffic.moved_cut
        memory_s = num_bytes / self._machine.memory_bytes_per_s
        return PassCost(moved * values_s, per_microbatch_s=launches_s + memory_s)
