"""Every description in conf/dataset describes a dataset, with a function that exists, and mixtures name descriptions that exist."""

from pathlib import Path

import pytest
import yaml

from mimicvideo.compose import CONF
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.open import FORMATS
from mimicvideo.data.spec import SPECS, DatasetSpec, load_spec
from mimicvideo.data.standards import find

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
