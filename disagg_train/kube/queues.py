"""What makes a Ray cluster wait in a queue until there is room for all of its pods."""

from disagg_train.config.kubernetes import QueueConfig
from disagg_train.errors import ConfigError

_MOST_POD_SETS = 8
"""Of a workload that Kueue admits: the head, each group of workers, a RayJob's submitter."""


def queue_labels(queue: QueueConfig | None) -> dict[str, str]:
    """Return the labels by which a RayJob or RayCluster is put into a queue.

    Kueue finds them itself. Volcano and KAI are told by the KubeRay operator, which must be
    installed for the one or the other.
    """
    if queue is None:
        return {}
    if queue.kind == "kueue":
        return {"kueue.x-k8s.io/queue-name": queue.name}
    if queue.kind == "volcano":
        return {"ray.io/scheduler-name": "volcano", "volcano.sh/queue-name": queue.name}
    return {"kai.scheduler/queue": queue.name}


def check_queue(queue: QueueConfig | None, num_groups: int, has_submitter: bool) -> None:
    """Refuse a job that its queue would never let in.

    Raises:
        ConfigError: Kueue counts too many sets of pods.
    """
    most = _MOST_POD_SETS - 1 - has_submitter
    if queue is not None and queue.kind == "kueue" and num_groups > most:
        raise ConfigError(
            f"kubernetes.queue: Kueue admits {most} actor groups at most here, the job has "
            f"{num_groups}; put modules on the same group, or use another kind of queue"
        )
