"""One hypothesis profile without deadlines, as machines are shared; one import for forked ranks."""

import multiprocessing
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "disagg_train_hypothesis")
settings.register_profile(
    "unit",
    deadline=None,
    max_examples=120,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("unit")

multiprocessing.set_forkserver_preload(
    ["disagg_train.engine.inspect", "disagg_train.engine.decode"]
)
