"""Ray's object store relays plans: run as a program, since it needs a Ray of several nodes.

Prints how often a plan reached each node, given to all its ranks twice: ahead, and to be run.
"""

import json
import os
import sys
import time
from statistics import median
from typing import Any

os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}

import ray
from ray._private.internal_api import node_stats
from ray.cluster_utils import Cluster

from actors.plans import StoredPlans
from disagg_train.bench.machine import commit, hardware
from disagg_train.planner.in_order import in_order
from disagg_train.planner.step_plan import SampleSize, Slot, StepPlan

SAMPLES, STEPS, CALLS = 4096, 10, 250
RANKS_PER_NODE = 2


@ray.remote
class Rank:
    """Takes plans as ranks do, and does nothing with them."""

    def train(self, plan: StepPlan, upcoming: StepPlan | None) -> int:
        """Return the step."""
        del upcoming
        return plan.step


def main(folder: str) -> None:
    """Hand plans out to two nodes of two ranks each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": folder})
    try:
        nodes = [cluster.add_node(num_cpus=RANKS_PER_NODE) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)
        actors = [Rank.remote() for _ in range(2 * RANKS_PER_NODE)]  # type: ignore[attr-defined]
        print(json.dumps(hand_out(actors, nodes)))
    finally:
        ray.shutdown()
        cluster.shutdown()


def hand_out(actors: list[Any], nodes: list[Any]) -> dict[str, Any]:
    """Hand a few plans out one ahead; return copies per node and plan, and times.

    Keys: ``hand_out_ms`` is from the first call of a step to the last answer, on idle ranks, each
    of which reads two plans; ``submit_us_per_rank`` is the driver's time per call.
    """
    ray.get([actor.train.remote(plan_of(-1, 1), None) for actor in actors])
    begin, plans, stored = (
        created(nodes),
        [plan_of(n, SAMPLES) for n in range(STEPS)],
        StoredPlans(),
    )
    round_s = []
    for plan, upcoming in zip(plans, [*plans[1:], None], strict=True):
        begin_s = time.perf_counter()
        told = stored.ref(plan), None if upcoming is None else stored.ref(upcoming)
        assert ray.get([actor.train.remote(*told) for actor in actors]) == [plan.step] * len(actors)
        round_s.append(time.perf_counter() - begin_s)
    copies = [(now - then) / STEPS for then, now in zip(begin, created(nodes), strict=True)]
    return {
        "samples": SAMPLES,
        "nodes": len(nodes),
        "ranks_per_node": RANKS_PER_NODE,
        "copies_per_node": copies,
        "hand_out_ms": 1e3 * median(round_s),
        "submit_us_per_rank": 1e6 * submit_s(actors, stored.ref(plan_of(STEPS, SAMPLES))),
        "hardware": hardware(),
        "commit": commit(),
    }


def submit_s(actors: list[Any], ref: ray.ObjectRef) -> float:
    """Return the driver's seconds per call, as many calls in a row as a large job has ranks."""
    begin_s = time.perf_counter()
    calls = [actors[n % len(actors)].train.remote(ref, None) for n in range(CALLS)]
    submitted_s = (time.perf_counter() - begin_s) / CALLS
    ray.get(calls)
    return submitted_s


def plan_of(step: int, samples: int) -> StepPlan:
    """Return a plan of samples of one image each."""
    sizes = tuple(
        SampleSize(n, 400, 60, {"vision": (Slot(0, 256),)}, {"vision": (1024,)})
        for n in range(samples)
    )
    return StepPlan(step, sizes, {m: in_order(samples, 1, 1) for m in ("vision", "language")})


def created(nodes: list[Any]) -> list[int]:
    """Return how many objects each node's store has ever taken in."""
    infos = {node["NodeID"]: node for node in ray.nodes()}
    found = []
    for node in nodes:
        info = infos[node.node_id]
        stats = node_stats(info["NodeManagerAddress"], info["NodeManagerPort"], False)
        found.append(int(stats.store_stats.cumulative_created_objects))
    return found


if __name__ == "__main__":
    main(sys.argv[1])
