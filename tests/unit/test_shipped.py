"""conf/ is found from any directory, in a clone and in what a wheel installs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mimicvideo.compose import compose_argv
from mimicvideo.messages import ConfigError
from mimicvideo.shipped import CONF, with_shipped


def test_a_file_of_conf_has_its_name_in_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["fit", "--config", "conf/trainer/cpu.yaml", "--model.decoder=conf/decoder/dit_tiny.yaml", "--run_dir=runs/a=b"]
    assert with_shipped(argv) == ["fit", "--config", f"{CONF}/trainer/cpu.yaml", f"--model.decoder={CONF}/decoder/dit_tiny.yaml", argv[4]]
    with pytest.raises(ConfigError, match=r"there is no conf/trainer/cpo.yaml: did you mean 'cpu'"):
        compose_argv(with_shipped(["fit", "--config", "conf/trainer/cpo.yaml"]))


def test_files_of_the_working_directory_win_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "trainer").mkdir(parents=True)
    (tmp_path / "conf" / "trainer" / "cpu.yaml").write_text("accelerator: cpu\n")
    argv = ["fit", "--config=conf/trainer/cpu.yaml", "-c", "conf/trainer/none.yaml", "--config", "mine/conf/fit.yaml", "conf/README"]
    assert with_shipped(argv) == argv


def test_an_installed_package_has_conf(tmp_path: Path) -> None:
    """What a wheel would hold, on its own and away from the clone."""
    root, library = Path(__file__).resolve().parents[2], tmp_path / "library"
    build = [
        sys.executable,
        "-c",
        "import setuptools; setuptools.setup()",
        "-q",
        "egg_info",
        "-e",
        str(tmp_path),
        "build",
        "-b",
        str(tmp_path / "build"),
        "build_py",
        "-d",
    ]
    built = subprocess.run([*build, str(library)], cwd=root, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    there = {file.relative_to(library / "mimicvideo" / "conf") for file in (library / "mimicvideo" / "conf").rglob("*.yaml")}
    assert there == {file.relative_to(root / "conf") for file in (root / "conf").rglob("*.yaml")}
    code = {file.relative_to(root) for file in (root / "mimicvideo").rglob("*") if file.is_file() and file.suffix != ".pyc"}
    assert code <= {file.relative_to(library) for file in library.rglob("*")}
    code = (
        "import mimicvideo.compose as c, mimicvideo.data.spec as s, mimicvideo.shipped as w\n"
        "argv = c.compose_argv(w.with_shipped(['fit', '--config=conf/experiment/quickstart_action.yaml']))\n"
        "print(c.CONF, 'DiTDecoder' in argv[1], s.load_spec('droid').robot is not None)"
    )
    environment = {**os.environ, "PYTHONPATH": str(library)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(library / "mimicvideo" / "conf"), "True", "True"], done.stderr
