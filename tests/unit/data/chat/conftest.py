"""One tokenizer for all tests of chat data."""

from pathlib import Path

import pytest

from tests.unit.data.chat.making import save_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    return save_tokenizer(folder)
