"""The errors a user can meet. Each message gives the value, the rule, and the way out."""


class DisaggTrainError(Exception):
    """Base of every error that this project raises on purpose."""


class ConfigError(DisaggTrainError, ValueError):
    """The job file asks for something that cannot be."""


class PlanError(DisaggTrainError):
    """A layout, a step plan or a schedule breaks its own rules."""


class BoundaryError(DisaggTrainError):
    """An exchange between two modules failed or timed out."""


class DataError(DisaggTrainError):
    """A sample or a data set cannot be used."""


class CheckpointError(DisaggTrainError):
    """A checkpoint cannot be written or read."""


class ClusterError(DisaggTrainError):
    """The cluster cannot hold the job's groups."""


class RankError(DisaggTrainError):
    """A rank died, hung or raised.

    Args:
        message: what happened.
        group: name of the actor group.
        rank: rank inside the group.
        node: address of the node, where known.
        op: the op the rank was running, as ``kind module microbatch``, where known.
    """

    def __init__(self, message: str, group: str, rank: int, node: str = "", op: str = "") -> None:
        where = f"group {group!r} rank {rank}"
        where += f" on node {node}" if node else ""
        where += f" during {op}" if op else ""
        super().__init__(f"{where}: {message}")
        self.message = message
        self.group, self.rank, self.node, self.op = group, rank, node, op

    def __reduce__(self) -> tuple[type["RankError"], tuple[str, str, int, str, str]]:
        """Pickle by the constructor's arguments, so that the error survives its way home."""
        return type(self), (self.message, self.group, self.rank, self.node, self.op)
