"""A file that is written appears whole or not at all."""

import errno
from pathlib import Path

import pytest

from mimicvideo.atomic import PARTIAL, full_disk, whole_file


def test_it_appears_when_it_is_complete_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "folder/file"
    for content in ("old", "new"):
        before = path.read_text() if path.exists() else None
        with whole_file(path, "note") as temporary:
            temporary.write_text(content)
            assert (path.read_text() if path.exists() else None) == before
            assert temporary.parent == path.parent and temporary.name.split(".")[-3] == "note" and temporary.suffix == PARTIAL
        assert path.read_text() == content and [*path.parent.iterdir()] == [path]
    assert path.stat().st_mode & 0o777 == 0o644, "others may read it"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(error), whole_file(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise error
    assert (tmp_path / "file").read_text() == "old" and [*tmp_path.iterdir()] == [tmp_path / "file"]


def test_long_names(tmp_path: Path) -> None:
    with whole_file(tmp_path / ("x" * 255)) as temporary:
        temporary.write_text("1")
    assert (tmp_path / ("x" * 255)).read_text() == "1"


def test_a_full_disk_is_known_by_the_words_of_libraries_too() -> None:
    """Their errors carry no number: safetensors' and those that shutil.copytree collects."""
    words = (
        "Error while serializing: I/O error: No space left on device (os error 28)",
        "[('a', 'b', '[Errno 28] No space left on device')]",
    )
    for text in words:
        found = full_disk(RuntimeError(text))
        assert found is not None and found.errno == errno.ENOSPC
    assert full_disk(OSError(errno.EDQUOT, "quota")) is not None
    assert full_disk(RuntimeError("[Errno 2] in 28 files")) is None
