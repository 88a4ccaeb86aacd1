"""Who may import whom: the table of the design, held by the syntax trees of the package. See CONTRIBUTING.md."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "mimicvideo"
FILES = sorted(PACKAGE.rglob("*.py"))

# Which modules of ours a part may import beside its own; a prefix stands for all below it.
VOCABULARY = ["types", "flow", "noise", "messages"]
MAY_IMPORT = {
    "types": [],
    "flow": [],
    "noise": [],
    "normalize": [],
    "execution": [],
    "sharding": [],
    "ema": ["sharding"],
    "ranks": ["noise"],
    "peak": [],
    "strategy": ["sharding"],
    "memory": ["messages", "peak", "video.footprint", "video.sizes", "video.adaptation", "action.context", "action.decoder"],
    # What a run is made of, built or compared before it starts.
    "parts": [
        "memory",
        "messages",
        "noise",
        "normalize",
        "ema",
        "data.sources",
        "data.window",
        "video.inputs",
        "video.options",
        "video.sizes",
        "action.acting",
        "action.context",
        "action.decoder",
        "action.flow_times",
        "action.options",
    ],
    "schedules": [],
    "media": [],
    "messages": ["shipped"],  # hints at files of conf/
    "shipped": [],
    "hashes": [],
    "atomic": [],
    "hub": [],
    "checkpoint": ["hashes"],
    "folders": ["atomic", "checkpoint", "hashes"],
    "native_files": [],
    "provenance": [],
    "video": [
        *VOCABULARY,
        "atomic",
        "hashes",
        "hub",
        "execution",
        "ema",
        "schedules",
        "folders",
        "native_files",
        "sharding",
        "ranks",
        "peak",
    ],
    "action": [
        *VOCABULARY,
        "execution",
        "ranks",
        "normalize",
        "ema",
        "schedules",
        "checkpoint",
        "folders",
        "native_files",
        "video.backbone",
    ],
    "reason": ["hub"],
    "data": ["types", "normalize", "messages", "hashes", "atomic", "shipped"],  # conf/dataset
    "benchmark": ["types", "messages", "data.lerobot_writer", "data.video_encoding"],
    "callbacks": [*VOCABULARY, "media", "checkpoint", "sharding", "video.backbone"],
    "compose": ["messages", "shipped"],
    "cli": [
        "compose",
        "memory",
        "messages",
        "parts",
        "callbacks",
        "provenance",
        "execution",
        "video.kernels",
        "video.pretrained",
    ],  # before a run, whether its kernels and weights are there
    "functions": ["compose", "messages"],
    "sweep": ["compose", "messages"],
    "audit": ["atomic", "data", "messages", "provenance", "report_html", "report_figures"],
    "check": ["cli", "compose", "functions", "memory", "messages", "video.sizes", "action.context", "action.decoder"],
    "__main__": ["atomic", "audit.command", "cache", "check", "cli", "compose", "functions", "sweep", "messages", "shipped"],
    "cache": ["cli", "messages"],  # it builds what fit builds
}
# Packages and the only places where they may be imported.
ONLY_IN = {
    "hydra": ["compose", "sweep"],
    "omegaconf": ["compose", "sweep"],
    "diffusers": ["video"],
    "peft": ["video"],
    "transformers": ["video", "reason"],
    "tensorflow": ["data.rlds"],
    "tensorflow_datasets": ["data.rlds"],
    "h5py": ["data.hdf5_store"],
    "zarr": ["data.zarr_store"],
    "torchcodec": ["data.codec"],
    "metaworld": ["benchmark.metaworld"],
    "mujoco": ["benchmark.rendering"],
}
DISTRIBUTION = {"PIL": "pillow", "yaml": "pyyaml", "huggingface_hub": "huggingface-hub", "hydra": "hydra-core", "omegaconf": "hydra-core"}
DISTRIBUTION |= {"tensorflow_datasets": "tensorflow-datasets", "google_crc32c": "google-crc32c"}
COMES_WITH = {"mujoco": "metaworld", "OpenGL": "metaworld", "gymnasium": "metaworld", "torchmetrics": "lightning"}
COMES_WITH |= {"array_record": "tensorflow_datasets", "google": "tensorflow_datasets"}  # google: protobuf


def module(file: Path) -> str:
    """`video.backbone` for mimicvideo/video/backbone.py, `video` for its __init__."""
    return re.sub(r"\.?__init__$", "", ".".join(file.relative_to(PACKAGE).with_suffix("").parts))


def imports(file: Path) -> set[str]:
    """Full names of all modules that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports in full"
            found.add(node.module or "")
            if node.module and node.module.split(".")[0] == "mimicvideo":  # `from mimicvideo import flow` imports mimicvideo.flow
                found |= {f"{node.module}.{alias.name}" for alias in node.names if is_module(f"{node.module}.{alias.name}")}
    return found


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def within(name: str, places: list[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def parametrized() -> list:
    return [pytest.param(file, id=module(file) or "mimicvideo") for file in FILES]


@pytest.mark.parametrize("file", parametrized())
def test_modules_of_ours_are_imported_as_the_table_says(file: Path) -> None:
    here = module(file)
    part = here.split(".")[0]
    ours = {name.removeprefix("mimicvideo").lstrip(".") for name in imports(file) if name.split(".")[0] == "mimicvideo"} - {""}
    packages = {name for name in ours if (PACKAGE / name.replace(".", "/")).is_dir()}  # `from mimicvideo.action import state`
    if part in MAY_IMPORT:
        forbidden = {name for name in ours - packages if not within(name, [part, *MAY_IMPORT[part]])}
        assert not forbidden, f"{here} may import {MAY_IMPORT[part]}, not {sorted(forbidden)}"
    if part not in ("cache", "check", "__main__"):
        assert "cli" not in ours, f"{here}: nothing but the program itself imports the command line"


@pytest.mark.parametrize("file", parametrized())
def test_packages_stay_in_their_rooms(file: Path) -> None:
    for name in imports(file):
        room = ONLY_IN.get(name.split(".")[0])
        assert room is None or within(module(file), room), f"{module(file)} imports {name}, which only {room} may"


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    names = {re.split(r"[\[<>=!~ ]", line)[0].lower() for line in declared}
    imported = {name.split(".")[0] for file in FILES for name in imports(file)} - set(sys.stdlib_module_names) - {"mimicvideo"}
    imported = {COMES_WITH.get(name, name) for name in imported}
    missing = {name for name in imported if DISTRIBUTION.get(name, name).lower() not in names}
    assert not missing, f"imported but not in pyproject.toml: {sorted(missing)}"


@pytest.mark.parametrize("file", parametrized())
def test_modules_open_with_a_sentence_and_stay_short(file: Path) -> None:
    text = file.read_text()
    opening = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
    assert opening.endswith((".", ";", "…")) or ":" in opening, f"{file.name} must open with one sentence on what it is"
    assert len(text.splitlines()) <= 400, f"{file.name} has {len(text.splitlines())} lines: divide it"
