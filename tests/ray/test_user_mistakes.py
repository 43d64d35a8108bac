"""What a user gets wrong ends in a message with the way out, before any actor starts."""

import pytest

from actors import cluster
from disagg_train.errors import ClusterError, ConfigError, DataError
from disagg_train.trainer import Trainer
from tests.ray.jobs import job_with

pytestmark = pytest.mark.ray


def _no_actors(*_: object, **__: object) -> None:
    raise AssertionError("an actor was started")


@pytest.fixture
def no_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "start_actor", _no_actors)


@pytest.mark.usefixtures("no_actors")
class TestBeforeAnyActorStarts:
    def test_an_empty_data_set_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"has no train samples; check data\.options"):
            Trainer(job_with(source="EmptySource"))

    def test_more_placeholders_than_images_name_the_sample(self) -> None:
        with pytest.raises(DataError, match="sample 5 has 2 image placeholders .* 1 images"):
            Trainer(job_with(source="TooManyPlaceholdersSource"))

    def test_an_unknown_source_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"data\.kind: cannot import"):
            Trainer(job_with("data.kind=nowhere.at_all:Source"))

    def test_unknown_options_of_a_source_are_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"data\.options do not fit 'digits'.*colour"):
            Trainer(job_with("data.options.colour=red"))

    def test_a_job_larger_than_the_cluster_says_what_is_missing(self, pool: object) -> None:
        job = job_with("groups.encoders.ranks=40", "modules.vision.parallel.dp=40")
        with pytest.raises(ClusterError, match="need 42 ranks .*are missing.*fallback: colocated"):
            next(Trainer(job).fit())

    def test_gpus_that_the_cluster_lacks_are_refused(self, pool: object) -> None:
        with pytest.raises(ConfigError, match="device: cuda, but the cluster has no GPU"):
            next(Trainer(job_with("device=cuda")).fit())

    def test_a_busy_cluster_names_the_group_at_the_deadline(self, pool: object) -> None:
        degrees = ("groups.encoders.ranks=4", "modules.vision.parallel.dp=4")
        job = job_with("deadlines.placement_s=1.5", *degrees)
        with pytest.raises(ClusterError, match=r"(?s)group '\w+' was not placed in 1\.5 s.* free"):
            next(Trainer(job).fit())
