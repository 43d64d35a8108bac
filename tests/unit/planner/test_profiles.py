"""Measured costs: as fitted, scaled to other degrees by the analytic model, kept in files."""

from pathlib import Path

import pytest

from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.errors import ConfigError, DataError
from disagg_train.planner.analytic_costs import costs_by_size
from disagg_train.planner.machine import Machine
from disagg_train.planner.measurements import file_of, read_modules, write_link, write_module
from disagg_train.planner.profiles import Profile
from disagg_train.planner.sample_costs import ModuleCost, PassCost
from disagg_train.schedule.ops import OpKind
from tests.unit.config.jobs import JOB
from tests.unit.planner.measured import HALVES, MACHINE, link, module_of

BASE = ("modules.language.model.num_layers=4",)
DEGREES = {
    "as measured": (),
    "tp": ("modules.language.parallel={tp: 4, sp: true}",),
    "dp": ("modules.language.parallel={dp: 4}",),
    "cp": ("modules.language.parallel={cp: 2, dp: 2}",),
    "pp": ("modules.language.parallel={pp: 4}",),
    "vpp": ("modules.language.parallel={pp: 2, vpp: 2, dp: 2}",),
    "recompute": ("modules.language.recompute=full",),
    "more ranks": ("groups.language.ranks=16", "modules.language.parallel={tp: 4, dp: 4}"),
}


def job_of(*overrides: str) -> JobConfig:
    return load_job(JOB, [*BASE, *overrides])


def profile_of(job: JobConfig, **kinds: tuple[OpKind, ...]) -> Profile:
    modules = [module_of(job, name, **kinds) for name in job.modules]
    return Profile(modules, [link(MACHINE.link_bytes_per_s, MACHINE.latency_s, True)])


def assert_same(found: ModuleCost, wanted: ModuleCost) -> None:
    assert len(found.stages) == len(wanted.stages)
    for stage, other in zip(found.stages, wanted.stages, strict=True):
        for kind, cost in other.passes.items():
            assert _coefficients(stage.passes[kind]) == pytest.approx(_coefficients(cost), rel=1e-6)
        assert stage.once_s == pytest.approx(dict(other.once_s))
        assert stage.bytes_per_token == pytest.approx(other.bytes_per_token)


def _coefficients(cost: PassCost) -> tuple[float, float]:
    return cost.per_token_s, cost.per_square_s


def _typical_s(cost: PassCost) -> float:
    return 100.0 * cost.per_token_s + 2500.0 * cost.per_square_s


@pytest.mark.parametrize("degrees", DEGREES)
def test_where_the_analytic_model_is_right_scaling_is_too(degrees: str) -> None:
    measured, wanted = job_of(), job_of(*DEGREES[degrees])
    found = profile_of(measured).costs(wanted)
    computed = costs_by_size(wanted, MACHINE)
    for name in wanted.modules:
        assert_same(found.modules[name], computed.modules[name])


def test_a_machine_that_is_slower_than_computed_is_slower_in_other_degrees_too() -> None:
    """Twice the seconds at tp 2 are twice the seconds at tp 4."""
    slow = Machine(5e10, MACHINE.link_bytes_per_s, MACHINE.latency_s, 0.5e9)
    measured, wanted = job_of(), job_of(*DEGREES["tp"])
    profile = Profile([module_of(measured, name, slow) for name in measured.modules])
    computed = costs_by_size(wanted, MACHINE).modules["language"].stages[0]
    found = profile.costs(wanted).modules["language"].stages[0]
    for kind in (OpKind.FORWARD, OpKind.BACKWARD):
        assert _typical_s(found.passes[kind]) == pytest.approx(
            2 * _typical_s(computed.passes[kind])
        )


def test_what_is_scaled_is_said() -> None:
    profile = profile_of(job_of())
    assert profile.notes(job_of()) == []
    (note,) = profile.notes(job_of(*DEGREES["tp"]))
    assert note.startswith("modules.language: tp4-sp was not measured; scaled from tp2")


def test_a_replica_more_is_no_other_degree() -> None:
    bigger = job_of("groups.language.ranks=8", "modules.language.parallel={tp: 2, dp: 4}")
    profile = profile_of(job_of())
    assert profile.notes(bigger) == []
    before, after = (profile.costs(job).modules["language"] for job in (job_of(), bigger))
    key = OpKind.GRAD_SYNC
    assert after.stages[0].passes == before.stages[0].passes
    assert after.stages[0].once_s[key] > before.stages[0].once_s[key]


def test_the_nearest_degrees_are_scaled_from() -> None:
    jobs = [job_of(f"modules.language.parallel={{tp: {tp}, dp: {4 // tp}}}") for tp in (1, 4)]
    profile = Profile([module_of(job, name) for job in jobs for name in ("vision", "language")])
    wanted = job_of("groups.language.ranks=8", "modules.language.parallel={tp: 8}")
    assert profile.nearest(wanted, "language").parallel.tp == 4


def test_a_split_backward_tells_the_whole_and_a_whole_one_its_halves() -> None:
    job = job_of()
    computed = costs_by_size(job, MACHINE).modules["language"]
    for profile in (profile_of(job), profile_of(job, kinds=HALVES)):
        assert_same(profile.costs(job).modules["language"], computed)


def test_counted_activations_scale_computed_ones() -> None:
    job = job_of()
    modules = [module_of(job, name, activation_ratio=1.5) for name in job.modules]
    found = Profile(modules).costs(job).modules["language"].bytes_per_token
    computed = costs_by_size(job, MACHINE).modules["language"].bytes_per_token
    assert found == pytest.approx(1.5 * computed)


def test_measured_links_go_before_the_machine_s() -> None:
    job = job_of()
    modules = [module_of(job, name) for name in job.modules]
    links = [link(3e9, 1e-5, crosses_nodes=False), link(1e9, 5e-5, crosses_nodes=True)]
    found = Profile(modules, links).costs(job)
    assert (found.link_bytes_per_s, found.latency_s) == (pytest.approx(1e9), 5e-5)
    inside = Profile(modules, links[:1]).costs(job)
    assert (inside.link_bytes_per_s, inside.latency_s) == (pytest.approx(3e9), 1e-5)


@pytest.mark.parametrize(
    "override",
    [
        "modules.language.model.num_layers=8",
        "modules.language.freeze=true",
        "train.precision=bf16",
        "modules.language.packed=false",
    ],
)
def test_another_module_was_not_measured(override: str) -> None:
    with pytest.raises(ConfigError, match="modules.language: this module was not measured"):
        Profile([module_of(job_of(), "language")]).nearest(job_of(override), "language")


@pytest.mark.parametrize("override", ["modules.language.lr=0.1", "seed=3", "train.steps=9"])
def test_what_costs_nothing_makes_no_other_module(override: str) -> None:
    profile_of(job_of()).costs(job_of(override))


def test_hardware_is_never_guessed() -> None:
    job = job_of()
    both = [module_of(job, "language", hardware=kind) for kind in ("H100", "L40S")]
    with pytest.raises(ConfigError, match=r"measured on \['H100', 'L40S'\]; say which"):
        Profile(both).nearest(job, "language")
    named = job_of("groups.language.accelerator=L40S")
    assert Profile(both).nearest(named, "language").hardware == "L40S"
    with pytest.raises(ConfigError, match="not on 'A100'"):
        Profile(both).nearest(job_of("groups.language.accelerator=A100"), "language")


# Files.


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    job = job_of()
    for name in job.modules:
        path = write_module(tmp_path, module_of(job, name))
        assert path == file_of(tmp_path, job, name, "a CPU")
    write_link(tmp_path, link(3e9, 1e-5, crosses_nodes=False))
    profile = Profile.read(tmp_path)
    assert profile.costs(job) == Profile(
        [module_of(job, name) for name in job.modules], profile.links
    ).costs(job)
    assert not list(tmp_path.rglob(".*")), "nothing half-written stays"


def test_a_module_has_a_file_per_degrees_and_hardware_and_none_per_dp(tmp_path: Path) -> None:
    more = job_of("groups.language.ranks=8", "modules.language.parallel={tp: 2, dp: 4}")
    others = [job_of(*DEGREES[degrees]) for degrees in ("tp", "pp", "recompute")]
    files = {file_of(tmp_path, job, "language", "a CPU") for job in (job_of(), *others)}
    files.add(file_of(tmp_path, job_of(), "language", "H100"))
    assert len(files) == 5
    assert file_of(tmp_path, more, "language", "a CPU") in files


def test_measurements_of_other_hardware_can_be_left_out(tmp_path: Path) -> None:
    for kind in ("NVIDIA H100", "a CPU"):
        write_module(tmp_path, module_of(job_of(), "language", hardware=kind))
    assert {each.hardware for each in Profile.read(tmp_path, "h100").modules} == {"NVIDIA H100"}
    with pytest.raises(ConfigError, match="no measurements of 'L40S', but of"):
        Profile.read(tmp_path, "L40S")


def test_an_empty_folder_and_a_broken_file_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run disagg-train profile JOB first"):
        Profile.read(tmp_path)
    path = write_module(tmp_path, module_of(job_of(), "language"))
    path.write_text(path.read_text()[:100])
    with pytest.raises(DataError, match="remove it and profile again"):
        read_modules(tmp_path)
