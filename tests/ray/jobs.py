"""The job that the tests of actors run: small, disjoint, on four ranks."""

from typing import Any

from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from tests.parity.jobs import small_job


def job_with(*overrides: str, source: str | None = None) -> JobConfig:
    """Return the job with overrides, reading from a source of ``tests.ray.sources``."""
    job = small_job({"dp": 2}, {"tp": 2, "sp": True})
    content: dict[str, Any] = job.model_dump(mode="json")
    if source is not None:
        content["data"]["kind"] = f"tests.ray.sources:{source}"
    content["data"]["options"] |= {"samples": 22, "text_only": 0.0, "encoder": "vision"}
    return load_job(content, overrides)
