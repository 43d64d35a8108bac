"""Which files of a folder go with a job, how many, and that the archive says only what they say."""

from pathlib import Path
from zipfile import ZipFile

import pytest

from disagg_train.errors import ConfigError
from disagg_train.submission.files import check_size, files_of, write_archive


def _make(folder: Path, *names: str, text: str = "x") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_code_is_sent_and_what_lies_around_it_is_not(tmp_path: Path) -> None:
    kept = ["encoder.py", "mine/model.py", "mine/runs/of_mine.py", "vocabulary.txt"]
    _make(tmp_path, *kept, ".git/HEAD", ".venv/bin/python", "runs/a/metrics.jsonl")
    _make(tmp_path, "mine/__pycache__/model.pyc", "x.egg-info/PKG-INFO", "node_modules/a.js")
    assert list(files_of(tmp_path)) == sorted(kept)


def test_files_that_hold_secrets_by_custom_are_not_sent(tmp_path: Path) -> None:
    _make(tmp_path, "a.py", ".env", ".env.local", ".netrc", ".ssh/id_ed25519", "mine/key.pem")
    assert list(files_of(tmp_path)) == ["a.py"]


@pytest.mark.parametrize("ignore_file", [".gitignore", ".rayignore"])
def test_ignore_files_hold_from_their_folder_on(tmp_path: Path, ignore_file: str) -> None:
    _make(tmp_path, "data/big.bin", "mine/data/small.bin", "mine/a.py", "mine/log.txt", "log.txt")
    (tmp_path / ignore_file).write_text("/data/\n")
    (tmp_path / "mine" / ignore_file).write_text("*.txt\n")
    kept = {ignore_file, "log.txt", f"mine/{ignore_file}", "mine/a.py", "mine/data/small.bin"}
    assert set(files_of(tmp_path)) == kept


def test_excludes_are_written_as_in_gitignore(tmp_path: Path) -> None:
    _make(tmp_path, "a.py", "weights/a.bin", "mine/b.bin")
    assert list(files_of(tmp_path, ["weights/", "*.bin"])) == ["a.py"]


def test_links_to_folders_are_not_followed_and_links_to_files_are(tmp_path: Path) -> None:
    _make(tmp_path, "code/a.py", "else/b.py")
    (tmp_path / "code" / "data").symlink_to(tmp_path)
    (tmp_path / "code" / "b.py").symlink_to(tmp_path / "else" / "b.py")
    (tmp_path / "code" / "gone.py").symlink_to(tmp_path / "nowhere.py")
    assert list(files_of(tmp_path / "code")) == ["a.py", "b.py"]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder .*nowhere"):
        files_of(tmp_path / "nowhere")


def test_too_much_names_the_largest_and_the_way_out(tmp_path: Path) -> None:
    _make(tmp_path, "data/1.bin", "data/2.bin", text="x" * 600_000)
    _make(tmp_path, "a.py")
    files = files_of(tmp_path)
    assert check_size(files, 1_200_001) == 1_200_001
    with pytest.raises(ConfigError) as caught:
        check_size(files, 1_000_000)
    message = str(caught.value)
    assert "has 1.2 MB, and Ray takes 1.0 MB" in message
    assert "data/ (1.2 MB), a.py" in message
    assert "--exclude 'data/'" in message


def test_the_same_files_make_the_same_bytes(tmp_path: Path) -> None:
    _make(tmp_path / "in", "a.py", "mine/b.sh", "mine/c.py")
    (tmp_path / "in/mine/b.sh").chmod(0o755)
    archives = [tmp_path / "1.zip", tmp_path / "2.zip"]
    for archive in archives:
        (tmp_path / "in/a.py").touch()
        write_archive(archive, files_of(tmp_path / "in"), [("mine/c.py", "ours")])
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with ZipFile(archives[0]) as archived:
        assert sorted(archived.namelist()) == ["a.py", "mine/b.sh", "mine/c.py"]
        assert archived.read("mine/c.py") == b"ours"
        assert archived.getinfo("mine/b.sh").external_attr >> 16 & 0o777 == 0o755
