"""A finished run scores, goes on and leaves as the model that it trained, whatever the layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.pool import ActorPool
from disagg_train.data.source import Sample
from disagg_train.errors import CheckpointError
from disagg_train.trainer import Trainer
from tests.parity.photos import IMAGE_TOKEN, save_llava

pytestmark = pytest.mark.ray

_OTHER_LAYOUT = (
    "modules.vision.parallel={pp: 2}",
    "modules.language.parallel={dp: 2}",
)


def _job(llava: Path, output: Path, **language: Any) -> dict[str, Any]:
    module = {"pretrained": str(llava)}
    return {
        "name": "take-away",
        "groups": {"encoders": {"ranks": 2}, "language": {"ranks": 2}},
        "modules": {
            "vision": {"group": "encoders", "parallel": {"dp": 2}, **module},
            "language": {"group": "language", "parallel": {"tp": 2, "sp": True}, **module}
            | language,
        },
        "data": {"kind": "tests.parity.captions:Captions"},
        "train": {
            "steps": 5,
            "global_batch": 6,
            "microbatches": 2,
            "optimizer": {"lr": 1e-2},
            "evaluation": {"samples": 8},
        },
        "output": str(output),
    }


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    save_llava(folder)
    return folder


@pytest.fixture(scope="module")
def trained(pool: ActorPool, llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    trainer = Trainer(_job(llava, tmp_path_factory.mktemp("run")))
    assert len(list(trainer.fit(pool))) == 5
    return trainer


def test_a_run_scores_on_another_layout_as_it_did_at_its_end(
    pool: ActorPool, trained: Trainer
) -> None:
    before = trained.evaluations[-1]
    after = Trainer.of_run(trained.output, _OTHER_LAYOUT).evaluate(pool)
    assert after.loss == pytest.approx(before.loss, rel=1e-5)
    assert after.answers == before.answers
    assert (after.step, after.exact_match, after.token_f1) == (
        5,
        before.exact_match,
        pytest.approx(before.token_f1),
    )


@pytest.mark.slow
def test_a_trainer_scores_what_it_trained_and_not_what_it_began_with(
    pool: ActorPool, trained: Trainer
) -> None:
    assert trained.evaluate(pool).loss == pytest.approx(trained.evaluations[-1].loss, rel=1e-5)
    fresh = Trainer(trained.job).evaluate(pool)
    assert fresh.step == 0
    assert abs(fresh.loss - trained.evaluations[-1].loss) > 0.01


@pytest.mark.slow
def test_transformers_scores_the_exported_model_as_we_do(trained: Trainer, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, LlavaForConditionalGeneration

    from disagg_train.export import export
    from tests.parity.exported_vlm import mean_loss

    export(trained.output, tmp_path / "out", image_token_id=IMAGE_TOKEN)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()

    def logits(tokens: Any, photos: list[Any]) -> Any:
        pixels = torch.tensor(np.stack(photos)).permute(0, 3, 1, 2) if photos else None
        with torch.no_grad():
            return model(input_ids=torch.tensor(tokens)[None], pixel_values=pixels).logits[0]

    ours = trained.evaluations[-1].loss
    assert mean_loss(logits, _held_out(trained)) == pytest.approx(ours, rel=1e-4)
    tower = AutoModel.from_pretrained(tmp_path / "out" / "vision")
    language = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "language")
    theirs = model.state_dict()
    for prefix, part in (("model.vision_tower.", tower), ("model.language_", language)):
        for name, weight in part.state_dict().items():
            inside = name if name.startswith("lm_head") else prefix + name
            assert weight.equal(theirs[inside]), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "language", "feature_layer"),
    [
        ("clip", "llama", -2),
        ("siglip", "qwen3", -1),
        ("siglip2", "mixtral", -2),
        ("whisper", "qwen3_moe", -1),
        ("clip", "qwen2-tied", -1),
    ],
)
def test_every_family_leaves_as_it_was_trained(
    pool: ActorPool, tmp_path: Path, encoder: str, language: str, feature_layer: int
) -> None:
    from disagg_train.export import export
    from tests.parity.exported_vlm import ExportedVlm, mean_loss
    from tests.unit.modules.exported_runs import save_encoder, save_language, tensors_in

    job = _job(tmp_path / "llava", tmp_path / "run")
    job["modules"]["vision"] |= {
        "pretrained": str(save_encoder(tmp_path / "encoder", encoder)),
        "model": {"feature_layer": feature_layer},
    }
    job["modules"]["language"]["pretrained"] = str(save_language(tmp_path / "llm", language))
    if encoder == "whisper":
        job["data"] = {"kind": "tests.parity.captions:Recordings"}
    trainer = Trainer(job)
    list(trainer.fit(pool))
    export(trainer.output, tmp_path / "out", layout="modules")
    model = ExportedVlm(tmp_path / "out", feature_layer)
    ours = trainer.evaluations[-1].loss
    for name, folder in (("vision", "encoder"), ("language", "llm")):
        before, after = tensors_in(tmp_path / folder), tensors_in(tmp_path / "out" / name)
        assert any(not before[each].equal(after[each]) for each in before)
    assert mean_loss(model.logits, _held_out(trainer)) == pytest.approx(ours, rel=1e-4)


def _held_out(trainer: Trainer) -> list[Sample]:
    sizes = trainer.source.sizes("evaluation")[: trainer.job.train.evaluation.samples]
    return [trainer.source.load(size.key) for size in sizes]


@pytest.mark.slow
def test_low_rank_additions_stay_or_are_merged(
    pool: ActorPool, llava: Path, tmp_path: Path
) -> None:
    trainer = Trainer(_job(llava, tmp_path, lora={"rank": 4, "alpha": 16.0}))
    list(trainer.fit(pool))
    loss = trainer.evaluations[-1].loss
    assert trainer.evaluate(pool).loss == pytest.approx(loss, rel=1e-5)
    merged = Trainer.of_run(tmp_path, ["modules.language.lora=null", *_OTHER_LAYOUT])
    assert merged.evaluate(pool).loss == pytest.approx(loss, rel=1e-4)


@pytest.mark.slow
def test_a_module_that_the_earlier_run_lacks_keeps_its_first_weights(
    pool: ActorPool, trained: Trainer, llava: Path, tmp_path: Path
) -> None:
    job: Mapping[str, Any] = _job(llava, tmp_path)
    modules = {"other": job["modules"]["vision"], "language": job["modules"]["language"]}
    job = {**job, "modules": modules}
    fresh = _first_weights(pool, job)
    weights = _first_weights(pool, {**job, "start_from": str(trained.output)})
    earlier = _saved(trained.output)
    language = [name for name in weights if name.startswith("language.")]
    other = [name for name in weights if name.startswith("other.")]
    assert all((weights[name] == earlier[name]).all() for name in language)
    assert all((weights[name] == fresh[name]).all() for name in other)
    assert language
    assert other


def _first_weights(pool: ActorPool, job: Mapping[str, Any]) -> dict[str, Any]:
    with pool.session(Trainer(job).job) as session:
        parts = [part for group in session.groups for part in group.weights().result()]
    return {name: weight for part in parts for name, weight in part.items()}


def _saved(run: Path) -> dict[str, Any]:
    from tests.checkpoints import load_weights

    return load_weights(run)


@pytest.mark.slow
def test_another_model_is_refused_by_name_and_shapes(
    pool: ActorPool, trained: Trainer, llava: Path, tmp_path: Path
) -> None:
    job = _job(llava, tmp_path)
    del job["modules"]["language"]["pretrained"]
    sizes = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 128}
    job["modules"]["language"] |= {"kind": "gpt", "model": sizes}
    job["start_from"] = str(trained.output)
    shapes = r"word_embeddings\.weight is \[64, 32\] in .*, but \[128, 32\] in this job"
    with pytest.raises(CheckpointError, match=shapes), pool.session(Trainer(job).job):
        pass


def test_an_unfinished_run_is_refused_before_any_actor_starts(llava: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no finished checkpoint"):
        Trainer(_job(llava, tmp_path) | {"start_from": str(tmp_path / "never")})
