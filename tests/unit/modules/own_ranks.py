"""Encoders of one's own, built and run on one rank in a process with Megatron.

Nothing heavy is imported before the rank runs, so that collecting the tests stays cheap.
"""

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disagg_train.config.load import load_job
from disagg_train.errors import DisaggTrainError
from disagg_train.topology.grid import Grid
from tests.unit.modules.language_ranks import DEADLINE_S, world

if TYPE_CHECKING:
    from disagg_train.config.job import JobConfig
    from disagg_train.modules.custom import CustomBatch

WIDTHS, KEYS = (3, 7, 3), (11, 12, 12)
WRONG = ("DropsAColumn", "SaysAnotherWidth", "ReturnsAList", "HasNoWidth", "MixesSamples")


@dataclass
class Seen:
    """What came of the encoders.

    Args:
        messages: errors by class, empty where there was none.
        weights: of the plain class by (seed, module name).
        names: of its weights.
        shape: of the rows that it made.
        again: whether two forwards of it differ, as they do under dropout: in training, in an
            evaluation, and in training while it is frozen.
        global_draws: whether building it moved torch's own random numbers.
        bf16: types of its rows and of its gradients, where it trains in bf16.
    """

    messages: dict[str, str] = field(default_factory=dict)
    weights: dict[tuple[int, str], Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    again: tuple[bool, bool, bool] = (False, False, False)
    global_draws: bool = False
    bf16: tuple[str, ...] = ()


def run(rank: int, folder: Path) -> None:
    """Build and run every class; leave what came of it in ``folder``."""
    from disagg_train.modules import cpu

    cpu.install()
    seen = Seen()
    with world(rank, 1, folder / "world"):
        for name in WRONG:
            seen.messages[name] = _message(name)
        seen.messages["MixesSamples, frozen"] = _message("MixesSamples", freeze=True)
        _look_at_the_plain_one(seen)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(seen))


def _look_at_the_plain_one(seen: Seen) -> None:
    import torch

    for seed, name in ((1, "vision"), (2, "vision"), (1, "audio")):
        model = _stage(_job("Plain", seed, name), name).unwrapped
        seen.weights[seed, name] = model.encoder.matrix.weight.detach().numpy().copy()
    before = torch.get_rng_state()
    stage, frozen = _stage(_job("Plain")), _stage(_job("Plain", freeze=True))
    seen.global_draws = not torch.equal(before, torch.get_rng_state())
    seen.names = tuple(path for path, _ in stage.unwrapped.named_parameters())
    seen.shape = tuple(stage.forward(0, batch(), {}).shape)
    with torch.no_grad():
        in_evaluation = _differs(stage)
    seen.bf16 = _types_in_bf16()
    seen.again = _differs(stage), in_evaluation, _differs(frozen)


def _types_in_bf16() -> tuple[str, ...]:
    import torch

    job = load_job(_job("Plain"), ["train.precision=bf16"])
    stage = _stage(job)
    rows_TD = stage.forward(0, batch(), {})
    stage.backward(0, torch.ones_like(rows_TD))
    weight = stage.unwrapped.encoder.matrix.weight
    return str(rows_TD.dtype), str(weight.main_grad.dtype), str(bool(weight.main_grad.any()))


def _differs(stage: Any) -> bool:
    first, second = (stage.forward(number, batch(), {}) for number in (1, 2))
    return not first.equal(second)


def _message(name: str, **fields: Any) -> str:
    try:
        _stage(_job(name, **fields)).forward(0, batch(), {})
    except DisaggTrainError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _stage(job: "JobConfig", name: str = "vision") -> Any:
    import torch

    from disagg_train.engine.stage import build_stage
    from disagg_train.modules.process_groups import make_process_groups

    groups = make_process_groups(Grid(), 1, "gloo", DEADLINE_S)
    return build_stage(name, job, groups, torch.device("cpu"))


def _job(kind: str, seed: int = 1, name: str = "vision", **fields: Any) -> "JobConfig":
    own = {"kind": f"tests.unit.modules.own:{kind}", "group": "all"} | fields
    model = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
    return load_job(
        {
            "name": "own",
            "seed": seed,
            "groups": {"all": {"ranks": 1}},
            "modules": {name: own, "language": {"kind": "gpt", "group": "all", "model": model}},
            "train": {"steps": 1, "global_batch": 1, "optimizer": {"lr": 0.01}},
        }
    )


def batch() -> "CustomBatch":
    """Return images 4 pixels high; two of them are one sample's."""
    import torch

    from disagg_train.modules.custom import CustomBatch

    images = tuple(torch.linspace(-1, 1, 4 * width).reshape(4, width, 1) for width in WIDTHS)
    return CustomBatch(images, KEYS, WIDTHS, torch.arange(sum(WIDTHS)), WIDTHS)
