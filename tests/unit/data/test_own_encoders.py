"""Encoders of one's own: what the driver asks of a class, and what it says where that lacks."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from disagg_train.config.modules import CustomModule
from disagg_train.data.collate import token_numbers
from disagg_train.data.own_encoders import OwnProcessor, import_encoder
from disagg_train.data.processors import TokenCount
from disagg_train.errors import ConfigError, DataError
from disagg_train.topology.stream import Cut

OWN = "tests.unit.data.own"


def module(name: str = "Good", **fields: Any) -> CustomModule:
    return CustomModule.model_validate({"kind": f"{OWN}:{name}", "group": "encoders", **fields})


def processor(name: str = "Good", **fields: Any) -> OwnProcessor:
    return OwnProcessor("vision", module(name, **fields))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Missing", r"modules\.vision\.kind: cannot import '.*own:Missing'.*PYTHONPATH"),
        ("function", "no class with a `forward`; make it a torch nn.Module"),
        ("CannotCount", "static method `count`.*@staticmethod above `def count"),
        ("CountsOnAnInstance", "static method `count`, which is called without any weights"),
        ("Smells", r"modality is 'smell'; use one of \['image', 'audio'\]"),
        ("CannotHear", r"reads audio.*`load\(file, \*\*options\)`"),
        ("DeclaresNonsense", r"parallel has \['dp'\]; it may hold \['tp', 'cp', 'pp'\]"),
        ("ForgetsGroups", r"do not fit .*ForgetsGroups.__init__: .*'groups'"),
    ],
)
def test_a_class_that_breaks_the_contract_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        import_encoder("vision", module(name))


def test_an_option_that_the_class_does_not_take_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"modules\.vision\.options .* 'colour'.*__init__, count"):
        import_encoder("vision", module(options={"colour": "red"}))


@pytest.mark.parametrize("axis", ["tp", "cp", "pp"])
def test_a_degree_that_the_class_does_not_declare_is_refused(axis: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{axis}=2, .* does not declare '{axis}'; use {axis}: 1"
    ):
        import_encoder("vision", module(parallel={axis: 2}))


def test_dp_is_free_and_declared_degrees_are_taken() -> None:
    import_encoder("vision", module(parallel={"dp": 4}))
    import_encoder("vision", module("Cut", parallel={"tp": 2, "dp": 2}))


@pytest.mark.parametrize(
    ("fields", "way_out"),
    [
        ({"pretrained": "somewhere"}, "load weights in the class's __init__"),
        ({"lora": {"rank": 2}}, "freeze what is not to be trained"),
        ({"recompute": "selective"}, "use full or none"),
        ({"parallel": {"tp": 2, "sp": True}}, "every tp rank returns all tokens"),
    ],
)
def test_what_only_known_families_have_is_refused(fields: dict[str, Any], way_out: str) -> None:
    with pytest.raises(ValueError, match=way_out):
        module(**fields)


def test_tokens_are_counted_by_the_class_with_its_options_and_then_merged() -> None:
    assert processor().count((8, 32)) == TokenCount(8, 8)
    halved = processor(options={"columns": 2}, projector={"merge": 4})
    assert halved.count((8, 32)) == TokenCount(16, 4)


def test_an_input_that_the_class_refuses_is_bad_data() -> None:
    with pytest.raises(
        DataError, match=r"modules\.vision.* size \(8, 30\): 30 is no multiple of 4"
    ):
        processor().count((8, 30))


def test_tokens_that_do_not_merge_are_bad_data() -> None:
    with pytest.raises(DataError, match=r"makes 8 tokens .* do not merge by projector\.merge=3"):
        processor(projector={"merge": 3}).count((8, 32))


def test_a_count_that_is_no_whole_number_is_refused() -> None:
    with pytest.raises(DataError, match=r"count\(\(8, 32\)\) is 0\.5; return a whole number"):
        processor("CountsHalves").count((8, 32))


def test_images_are_loaded_as_rgb_where_the_class_has_no_load() -> None:
    file = io.BytesIO()
    Image.new("L", (3, 2), 51).save(file, "png")
    pixels = processor().load(io.BytesIO(file.getvalue()))
    assert pixels.shape == (2, 3, 3)
    assert pixels == pytest.approx(0.2)


def test_the_class_loads_what_it_knows_how_to() -> None:
    recordings = processor("Recordings", options={"columns": 1})
    assert recordings.modality == "audio"
    loaded = recordings.load(io.BytesIO(bytes([1, 2, 3])))
    assert loaded.dtype == np.float32
    assert loaded.tolist() == [[1.0], [2.0], [3.0]]


@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("cp", [1, 2, 3])
def test_cp_ranks_hold_every_token_once_between_them(cp: int, merge: int) -> None:
    lengths = (5, 12, 1)
    numbers = token_numbers(Cut(cp).stream(lengths), merge)
    assert numbers.shape[0] == cp
    assert sorted(numbers[numbers >= 0].tolist()) == list(range(sum(lengths) * merge))
    if cp == 1:
        assert numbers[0].tolist() == list(range(sum(lengths) * merge))


def test_an_index_can_tell_one_processor_from_another() -> None:
    named = {repr(processor()), repr(processor())}
    assert len(named) == 1
    assert repr(processor(projector={"merge": 2})) not in named
    assert " at 0x" not in named.pop()
