"""The part of the job file that says where the numbers of a run go, beside its own files."""

from typing import Literal

from pydantic import Field

from disagg_train.config.base import Config


class WandbConfig(Config):
    """A run at Weights & Biases. Its key is never in the job file: `wandb login`, WANDB_API_KEY."""

    project: str = Field(min_length=1)
    """Project that the run belongs to."""
    entity: str | None = None
    """Team or user; the key's own where not given."""
    mode: Literal["online", "offline"] | None = None
    """`offline` keeps the run in the output folder, for `wandb sync`; where not given, what
    WANDB_MODE says, else online."""


class MlflowConfig(Config):
    """A run at an MLflow tracking server. Keys are MLflow's own environment variables."""

    experiment: str = Field(min_length=1)
    """Experiment that the run belongs to; made where there is none."""
    tracking_uri: str | None = None
    """Address of the server; MLFLOW_TRACKING_URI where not given."""


class SinksConfig(Config):
    """Where the numbers of every step go, beside `metrics.jsonl`."""

    tensorboard: bool = True
    """Event files for TensorBoard in `tensorboard` in the output folder."""
    ray: bool = True
    """Metrics of Ray, for Prometheus to scrape at the driver's node."""
    wandb: WandbConfig | None = None
    """Weights & Biases: pip install 'disagg_train[wandb]'."""
    mlflow: MlflowConfig | None = None
    """MLflow: pip install 'disagg_train[mlflow]'."""
