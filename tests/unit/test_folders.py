"""Where a folder cannot be made, this is said before the work that would fill it."""

import errno
import tempfile
from pathlib import Path

import pytest

from mimicvideo.folders import check_free, replacing


def test_a_place_where_no_folder_can_be_made_is_refused(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=r"file/new/model cannot be made, since .*file is no folder: choose another folder"):
        check_free(tmp_path / "file" / "new" / "model")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(OSError, match=rf"model cannot be made, since {tmp_path} is not writable"):
        check_free(tmp_path / "model")


def test_a_mount_point_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    check_free(tmp_path / "model")
    with pytest.raises(OSError, match="is a mount point, whose place no other folder can take: choose a folder in it"):
        check_free(tmp_path)


def test_a_disk_that_takes_nothing_is_named(tmp_path: Path, monkeypatch) -> None:
    def refuse(**_options: object) -> str:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with (
        pytest.raises(OSError, match=rf"cannot make {tmp_path}/model \(Read-only file system\): make it writable"),
        replacing(tmp_path / "model"),
    ):
        pass
