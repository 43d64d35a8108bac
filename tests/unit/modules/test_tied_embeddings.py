"""An embedding that is the output layer too stays one matrix, on however many stages."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from disagg_train.data.source import Sample
from disagg_train.driver.parity import max_relative_gradient
from tests.parity.plain_vlm import PlainVlm
from tests.unit.forked import run_ranks
from tests.unit.modules.language_ranks import sample
from tests.unit.modules.tied_ranks import (
    CASES,
    MICROBATCHES,
    MOST_RANKS,
    NUM_STEPS,
    NUM_TARGETS,
    QUERY_GROUPS,
    Seen,
    Tensors,
    train_every_case,
)

TOLERANCE = 1e-5
EMBEDDING = "language.gpt.embedding.word_embeddings.weight"
OUTPUT_LAYER = "language.gpt.output_layer.weight"
Runs = dict[str, list[Seen]]
TIED = [name for name, case in CASES.items() if case.tied]
TRAINED = [name for name, case in CASES.items() if not case.frozen]
others = pytest.mark.parametrize("name", [n for n in TRAINED if n not in ("one", "untied")])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return what each rank of each case saw. The ranks are forked after one slow import."""
    ranks = run_ranks(train_every_case, MOST_RANKS, tmp_path_factory.mktemp("tied"))
    return {name: [rank[name] for rank in ranks if name in rank] for name in CASES}


def union(parts: Sequence[Tensors]) -> Tensors:
    """Return all ranks' tensors; no tensor may come from two ranks."""
    merged = {name: tensor for part in parts for name, tensor in part.items()}
    assert len(merged) == sum(len(part) for part in parts)
    return merged


def reference(name: str) -> str:
    """Return the case of one process that a case must equal."""
    return "one" if CASES[name].tied else "untied"


def gradients(seen: Sequence[Seen], step: int) -> Tensors:
    return union([rank.gradients[step] for rank in seen])


def weights(seen: Sequence[Seen], step: int) -> Tensors:
    return union([rank.weights[step] for rank in seen])


def test_one_process_trains_what_plain_torch_describes(runs: Runs) -> None:
    (one,) = runs["one"]
    plain = {
        name: torch.tensor(weight, dtype=torch.float64, requires_grad=True)
        for name, weight in one.weights[0].items()
    }
    model = PlainVlm(plain, 4, 1, 4, query_groups=QUERY_GROUPS, rotary_base=10_000)
    loss = torch.zeros((), dtype=torch.float64)
    for length in (length for lengths in MICROBATCHES for length in lengths):
        tokens = np.array(sample(length))
        labels = np.append(tokens[1:], -1)
        loss = loss + model.loss_sum(Sample(length, tokens, labels), [])
    (loss / NUM_TARGETS).backward()
    expected = {name: weight.grad.numpy() for name, weight in plain.items()}
    assert one.losses[0] == pytest.approx(loss.item(), rel=TOLERANCE)
    assert max_relative_gradient(one.gradients[0], expected) <= TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_a_tied_matrix_has_one_name_and_an_untied_model_two(runs: Runs, name: str) -> None:
    found = weights(runs[name], 0)
    assert EMBEDDING in found
    assert (OUTPUT_LAYER in found) is not CASES[name].tied


@pytest.mark.parametrize("name", TIED)
def test_both_copies_stay_equal_bit_by_bit(runs: Runs, name: str) -> None:
    tp = CASES[name].degrees.get("tp", 1)
    for moment in range(NUM_STEPS + 1):
        for tp_rank in range(tp):
            copies = [copy for rank in runs[name][tp_rank::tp] for copy in rank.copies[moment]]
            assert len(set(copies)) == 1
            assert len(copies) == num_copies(name)


def num_copies(name: str) -> int:
    """Return how many ranks hold the matrix, or the same part of it."""
    degrees = CASES[name].degrees
    return math.prod(degrees.get(axis, 1) for axis in ("dp", "cp")) * (2 if "pp" in degrees else 1)


def test_the_copies_are_trained(runs: Runs) -> None:
    (one,) = runs["one"]
    assert len({moment[0] for moment in one.copies}) == NUM_STEPS + 1


@others
def test_losses_and_norms_equal_one_process(runs: Runs, name: str) -> None:
    (one,) = runs[reference(name)]
    losses = [sum(step) for step in zip(*(seen.losses for seen in runs[name]), strict=True)]
    assert losses == pytest.approx(one.losses, rel=TOLERANCE)
    for seen in runs[name]:
        assert seen.norms == pytest.approx(one.norms, rel=TOLERANCE)


@pytest.mark.parametrize("name", TRAINED)
def test_the_norm_counts_every_named_gradient_once(runs: Runs, name: str) -> None:
    for step in range(NUM_STEPS):
        squares = [
            float(np.sum(g.astype(float) ** 2)) for g in gradients(runs[name], step).values()
        ]
        assert runs[name][0].norms[step] == pytest.approx(math.sqrt(sum(squares)), rel=TOLERANCE)


@others
def test_every_tensor_of_every_step_equals_one_process(runs: Runs, name: str) -> None:
    for of in (gradients, weights):
        for step in range(NUM_STEPS):
            found, expected = of(runs[name], step), of(runs[reference(name)], step)
            assert max_relative_gradient(found, expected) <= TOLERANCE
    found, expected = weights(runs[name], NUM_STEPS), weights(runs[reference(name)], NUM_STEPS)
    assert max_relative_gradient(found, expected) <= TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_evaluation_and_decoding_use_the_tied_matrix(runs: Runs, name: str) -> None:
    (one,) = runs[reference(name)]
    moments = 1 if CASES[name].frozen else 2  # a frozen model is later what it was before
    for moment in range(moments):
        score = sum(seen.scores[moment] for seen in runs[name])
        assert score == pytest.approx(one.scores[moment], rel=TOLERANCE)
        assert answers(runs[name], name, moment) == one.answers[moment]


def answers(seen: Sequence[Seen], name: str, moment: int) -> list[list[int]]:
    """Return the answers in the order of the samples, which the lanes took in turns."""
    degrees = CASES[name].degrees
    inner = degrees.get("tp", 1) * degrees.get("cp", 1)
    lanes = [seen[dp * inner].answers[moment] for dp in range(degrees.get("dp", 1))]
    num_samples = len(MICROBATCHES[0])
    return [lanes[i % len(lanes)][i // len(lanes)] for i in range(num_samples)]


def test_a_frozen_llm_keeps_one_matrix_and_has_no_gradients(runs: Runs) -> None:
    (one,), frozen = runs["one"], runs["frozen pp2"]
    losses = [sum(step) for step in zip(*(seen.losses for seen in frozen), strict=True)]
    assert losses == pytest.approx([one.losses[0]] * NUM_STEPS, rel=TOLERANCE)
    assert all(step == {} for seen in frozen for step in seen.gradients)
    assert len({copy for seen in frozen for moment in seen.copies for copy in moment}) == 1
