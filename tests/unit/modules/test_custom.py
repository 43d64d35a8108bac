"""A plain module becomes a stage; one that breaks its promises is told which."""

import re

import pytest

from tests.unit.forked import run_ranks
from tests.unit.modules.own_ranks import WIDTHS, Seen, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Return what came of the classes. The rank is forked after one slow import."""
    (found,) = run_ranks(run, 1, tmp_path_factory.mktemp("own"))
    assert isinstance(found, Seen)
    return found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "DropsAColumn",
            r"DataError: modules\.vision: .*:DropsAColumn returned \[12, 6\] where \[13, 6\] was "
            r"expected .* of an input \[4, 7, 1\] of sample 12 it makes 6 tokens, count\(\) says 7",
        ),
        ("SaysAnotherWidth", r"DataError: .*returned \[13, 5\] where \[13, 6\] was expected"),
        ("ReturnsAList", r"DataError: .*returned list where \[13, 6\] was expected"),
        ("HasNoWidth", r"ConfigError: .*HasNoWidth\.width is None; set self\.width in __init__"),
        ("MixesSamples", r"ConfigError: .*a BatchNorm1d \(norm\).*GroupNorm.*or freeze"),
    ],
)
def test_a_broken_promise_is_named(seen: Seen, name: str, message: str) -> None:
    assert re.search(message, seen.messages[name]), seen.messages[name]


def test_a_frozen_module_may_have_batch_norms(seen: Seen) -> None:
    assert seen.messages["MixesSamples, frozen"] == ""


def test_rows_have_the_llms_width(seen: Seen) -> None:
    assert seen.shape == (sum(WIDTHS), 16)


def test_its_weights_are_called_as_in_the_class(seen: Seen) -> None:
    assert {"encoder.matrix.weight", "encoder.matrix.bias"} < set(seen.names)
    assert all(name.startswith(("encoder.", "projector.")) for name in seen.names)


def test_the_seed_and_the_modules_name_decide_what_the_constructor_draws(seen: Seen) -> None:
    found = [weight.tobytes() for weight in seen.weights.values()]
    assert len(set(found)) == 3
    assert not seen.global_draws


def test_in_bf16_its_gradients_are_summed_in_fp32(seen: Seen) -> None:
    assert seen.bf16 == ("torch.bfloat16", "torch.float32", "True")


def test_dropout_drops_in_training_alone_and_never_where_it_is_frozen(seen: Seen) -> None:
    assert seen.again == (True, False, False)
