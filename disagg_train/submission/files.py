"""The files that go with a job: those of a folder, less what nobody imports, as one archive."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from pathspec import GitIgnoreSpec

from disagg_train.errors import ConfigError

LIMIT_BYTES = 100 * 2**20
"""Most that Ray's job server takes in one request, and a package is one."""

_NEVER_SENT = (
    *(".git/", ".hg/", ".svn/", ".venv/", "venv/", "node_modules/", "__pycache__/", "*.egg-info/"),
    *(".pytest_cache/", ".mypy_cache/", ".ruff_cache/", ".ipynb_checkpoints/", ".DS_Store"),
    *("/runs/", "/wandb/", "/mlruns/"),
    *(".env", ".env.*", ".netrc", ".ssh/", ".aws/", "*.pem", "id_rsa", "id_ed25519"),
)
"""Histories, environments, caches, outputs, and files that hold secrets by custom."""
_IGNORE_FILES = (".gitignore", ".rayignore")
_FIRST_DAY = (1980, 1, 1, 0, 0, 0)
_NUM_NAMED = 4


def files_of(folder: Path, excludes: Sequence[str] = ()) -> dict[str, Path]:
    """Return the files of a folder that are sent, by their paths below it.

    Left out is what ``.gitignore`` and ``.rayignore`` of the folder and of those below it name,
    what nobody sends, and links to folders.

    Args:
        folder: where to begin.
        excludes: patterns as in ``.gitignore``, on top of these.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder} to upload")
    top = GitIgnoreSpec.from_lines([*_NEVER_SENT, *excludes])
    return dict(sorted(_walk(folder, "", [("", top)])))


def _walk(
    folder: Path, below: str, rules: list[tuple[str, GitIgnoreSpec]]
) -> Iterator[tuple[str, Path]]:
    rules = [*rules, *((below, spec) for spec in _ignore_files(folder))]
    for entry in os.scandir(folder):
        name = below + entry.name
        is_folder = entry.is_dir(follow_symlinks=False)
        asked = f"{name}/" if is_folder else name
        if any(spec.match_file(asked.removeprefix(begin)) for begin, spec in rules):
            continue
        if is_folder:
            yield from _walk(Path(entry.path), asked, rules)
        elif entry.is_file():
            yield name, Path(entry.path)


def _ignore_files(folder: Path) -> Iterator[GitIgnoreSpec]:
    for name in _IGNORE_FILES:
        if (file := folder / name).is_file():
            yield GitIgnoreSpec.from_lines(file.read_text(errors="replace").splitlines())


def check_size(files: Mapping[str, Path], limit_bytes: int = LIMIT_BYTES) -> int:
    """Return how many bytes the files have.

    Raises:
        ConfigError: they are more than Ray takes; it names the largest of the folder.
    """
    sizes: Counter[str] = Counter()
    for name, path in files.items():
        top, slash, _ = name.partition("/")
        sizes[top + slash] += path.stat().st_size
    if (total := sizes.total()) > limit_bytes:
        largest = [f"{name} ({_mb(size)})" for name, size in sizes.most_common(_NUM_NAMED)]
        raise ConfigError(
            f"the folder to upload has {_mb(total)}, and Ray takes {_mb(limit_bytes)}; the largest "
            f"in it: {', '.join(largest)}. Leave out what the job does not import, by --exclude "
            f"{sizes.most_common(1)[0][0]!r} or a line in .rayignore"
        )
    return total


def write_archive(
    archive: Path, files: Mapping[str, Path], texts: Iterable[tuple[str, str]]
) -> None:
    """Write files and texts as a zip; the same content gives the same bytes.

    Args:
        archive: the file to write.
        files: by their paths in the archive.
        texts: path in the archive and content, in place of a file of that path.
    """
    written = dict(texts)
    with ZipFile(archive, "w", ZIP_DEFLATED) as out:
        for name, path in files.items():
            if name not in written:
                mode = path.stat().st_mode
                out.writestr(_entry(name, mode), path.read_bytes())
        for name, text in written.items():
            out.writestr(_entry(name, 0o644), text)


def _entry(name: str, mode: int) -> ZipInfo:
    entry = ZipInfo(name, _FIRST_DAY)
    entry.compress_type, entry.external_attr = ZIP_DEFLATED, (mode & 0o777) << 16
    return entry


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
