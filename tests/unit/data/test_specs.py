"""Every description in conf/dataset describes a dataset, with a function that exists, and mixtures name descriptions that exist."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mimicvideo.compose import CONF
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.open import FORMATS, open_episodes
from mimicvideo.data.spec import SPECS, DatasetSpec, load_spec
from mimicvideo.data.standards import find
from tests.every_format import HDF5, hdf5

NAMES = sorted(path.stem for path in SPECS.glob("*.yaml"))
MIXTURES = sorted(CONF.glob("data/oxe_*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_descriptions_are_sound(name: str) -> None:
    spec = load_spec(name)
    assert spec.format in FORMATS
    if spec.standardise:
        assert callable(find(spec.standardise))
    for names in (spec.proprio_names, spec.action_names):
        assert names is None or len(set(names)) == len(names)
    assert set(spec.swap_colours or ()) <= set(spec.cameras or ())


@pytest.mark.parametrize("path", MIXTURES, ids=lambda path: path.stem)
def test_mixtures_name_descriptions(path: Path) -> None:
    sources = yaml.safe_load(path.read_text())["init_args"]["sources"]
    for name, source in sources.items():
        spec = load_spec(source["spec"])
        assert (name, spec.format) == (source["spec"], "rlds")
        assert set(source.get("cameras", ["primary"])) <= set(spec.cameras or ())


def test_mixtures_have_the_weights_of_their_sources() -> None:
    """From octo-models/octo `oxe_dataset_mixes.py` and openvla/openvla `mixtures.py`."""
    weights = {
        path.stem: {name: source["weight"] for name, source in yaml.safe_load(path.read_text())["init_args"]["sources"].items()}
        for path in MIXTURES
    }
    assert {name: len(members) for name, members in weights.items()} == {
        "oxe_rtx": 11,
        "oxe_magic_soup": 25,
        "oxe_magic_soup_plus": 27,
        "oxe_bridge_rt_1": 2,
    }
    assert {name: round(sum(members.values()), 4) for name, members in weights.items()} == {
        "oxe_rtx": 19.375,
        "oxe_magic_soup": 30.775,
        "oxe_magic_soup_plus": 31.035,
        "oxe_bridge_rt_1": 2.0,
    }
    assert (
        weights["oxe_rtx"]["berkeley_cable_routing"],
        weights["oxe_magic_soup"]["nyu_franka_play_dataset_converted_externally_to_rlds"],
    ) == (3, 3)


def test_faulty_descriptions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'bridge_datset' \(did you mean 'bridge_dataset'\?\)"):
        load_spec("bridge_datset")
    (tmp_path / "x.yaml").write_text("format: rlds\nstandardize: x\n")
    with pytest.raises(DatasetError, match=r"unknown key 'standardize' \(did you mean 'standardise'\?\)"):
        load_spec(str(tmp_path / "x.yaml"))
    (tmp_path / "x.yaml").write_text("hz: 0\n")
    with pytest.raises(DatasetError, match="hz must be positive"):
        load_spec(str(tmp_path / "x.yaml"))
    with pytest.raises(DatasetError, match="is no function"):
        find("mimicvideo.data.oxe:nothing")
    assert load_spec(None) == DatasetSpec()


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("hz: fast", "hz must be positive, a number of rows per second, got 'fast'"),
        ("cameras: [front]", r"cameras must map names to keys of pictures, such as \{front: KEY\}, got \['front'\]"),
        ("actions: action", r"actions must be a list of names, such as \[action\], got 'action'"),
        ("proprio: [1, 2]", r"proprio must be a list of names, such as \[NAME\], got \[1, 2\]"),
        ("task: [name]", r"task must be a text, got \['name'\]"),
        ("drop_first: 1.5", "drop_first must be a whole number of rows, got 1.5"),
        ("hz: [1", "is no yaml: .*line 1"),
    ],
)
def test_values_of_another_kind_are_refused_by_key(tmp_path: Path, description: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(description)
    with pytest.raises(DatasetError, match=f"x.yaml.*{message}"):
        load_spec(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"actions": ["actoins"]}, r"no actions key 'actoins' \(did you mean 'actions'\?\); it has actions, obs/x, obs/y"),
        ({"task": "name"}, "no task key 'name'; it has instruction"),
        ({"interpolate": ["obs/z"]}, "no interpolate key 'obs/z'.*; it has actions, obs/x, obs/y"),
        ({"hz": 7}, "hz of the description is 7, but .* has 10 rows a second: remove hz, or correct it"),
        ({"hz": 9.5}, None),  # about as measured
    ],
)
def test_what_a_dataset_does_not_have_is_refused_by_key(tmp_path: Path, given: dict[str, Any], message: str | None) -> None:
    hdf5(tmp_path / "d")
    spec = replace(HDF5, **given)
    if message is None:
        assert open_episodes(tmp_path / "d", spec=spec).control_hz == given["hz"]
        return
    with pytest.raises(DatasetError, match=message):
        open_episodes(tmp_path / "d", spec=spec)
