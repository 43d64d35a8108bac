"""The steps of a run as a table for notebooks: a pandas frame, pandas being optional."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from disagg_train.errors import DisaggTrainError
from disagg_train.metrics.records import StepRecord

if TYPE_CHECKING:
    from pandas import DataFrame

_NESTED = ("modules", "bad_samples")


def step_frame(records: Sequence[StepRecord]) -> "DataFrame":
    """Return a row per step, with the step as its index.

    Columns are the fields of ``StepRecord`` and ``tokens_per_s``; those of its modules are named
    ``vision.forward_s`` and so on. Bad samples are only counted.

    Raises:
        DisaggTrainError: pandas is not installed.
    """
    try:
        from pandas import DataFrame
    except ImportError:
        raise DisaggTrainError(
            "step_stats is a pandas frame, and pandas is not installed: "
            "pip install 'disagg_train[notebook]'"
        ) from None
    plain = [field.name for field in fields(StepRecord) if field.name not in _NESTED]
    columns = [*plain, "tokens_per_s"]
    frame = DataFrame([_row(record, columns) for record in records])
    return (frame if len(frame) else DataFrame(columns=columns)).set_index("step")


def _row(record: StepRecord, columns: Sequence[str]) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in columns}
    for module, times in record.modules.items():
        row |= {f"{module}.{name}": value for name, value in asdict(times).items()}
    return row
