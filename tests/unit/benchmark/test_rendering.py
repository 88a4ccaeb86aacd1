"""Camera views: their fields, their errors, what they show; and the message when there is no GL library."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from mimicvideo.benchmark.rendering import VIEWS, CameraView, tile, view

FREE = {"name": "mine", "lookat": [0, 0.6, 0.1], "distance": 1, "azimuth": 120, "elevation": -30, "fovy": 50}

WITHOUT_GL = """
import ctypes, ctypes.util, os, sys
find, load = ctypes.util.find_library, ctypes.CDLL.__init__
def no_find(name): return None if "GL" in name or "Mesa" in name else find(name)
def no_load(self, name, *args, **kwargs):
    if name and ("EGL" in str(name) or "OSMesa" in str(name) or "libGL" in str(name)):
        raise OSError(f"{name}: cannot open shared object file")
    load(self, name, *args, **kwargs)
ctypes.util.find_library, ctypes.CDLL.__init__ = no_find, no_load
from mimicvideo.benchmark.rendering import import_mujoco
try:
    import_mujoco()
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize("given", [FREE, "corner2", "gripperPOV", {"name": "near", "camera": "corner3", "fovy": 30}])
def test_view_survives_json(given):
    seen = view(given)
    assert view(json.loads(json.dumps(seen.spec()))) == seen
    hash(seen)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cornr", "cornr.*corner2"),
        ({"name": "mine", "lookat": [0, 0, 0]}, "mine.*distance, azimuth, elevation"),
        ({"name": "mine", "camera": "corner", "distance": 1.0}, "distance.*corner"),
        ({**FREE, "lookat": [0, 0]}, r"lookat.*\[0, 0\]"),
        ({**FREE, "fovy": 180}, "fovy.*180"),
        ({**FREE, "zoom": 2}, "zoom"),
        ({"camera": "corner"}, "name"),
    ],
)
def test_refused_views_say_why(given, message):
    with pytest.raises(ValueError, match=message):
        view(given)


def test_tiles_stand_side_by_side_in_order():
    images = {name: np.full((4, 6, 3), value, np.uint8) for value, name in enumerate("abc")}
    tiled = tile(images)
    assert tiled.shape == (4, 18, 3)
    assert tiled[0, :, 0].tolist() == [0] * 6 + [1] * 6 + [2] * 6


def test_mujoco_imported_too_early_is_refused_instead_of_aborting():
    code = "import mujoco\nfrom mimicvideo.benchmark.rendering import import_mujoco\nimport_mujoco()"
    environment = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "RuntimeError: mujoco was imported before MUJOCO_GL=egl was set" in done.stderr


@pytest.mark.parametrize("chosen", [None, "osmesa"])
def test_missing_gl_library_names_the_packages(chosen):
    environment = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    if chosen:
        environment["MUJOCO_GL"] = chosen
    done = subprocess.run([sys.executable, "-c", WITHOUT_GL], env=environment, capture_output=True, text=True, check=True)
    assert "apt-get install libegl1 libgl1-mesa-dri" in done.stdout
    assert "apt-get install libosmesa6 and set MUJOCO_GL=osmesa" in done.stdout
    assert f"MUJOCO_GL={chosen or 'egl'} " in done.stdout


SCENE = """
<mujoco>
  <visual><global fovy="20"/></visual>
  <worldbody>
    <light pos="0 0 3"/>
    <geom name="right" type="box" size=".1 .1 .1" pos=".3 0 0" rgba="1 0 0 1"/>
    <geom name="above" type="box" size=".1 .1 .1" pos="0 0 .3" rgba="0 1 0 1"/>
    <camera name="fixed" pos="0 -2 0" xyaxes="1 0 0 0 0 1"/>
    <camera name="hanging" pos="0 -2 0" xyaxes="-1 0 0 0 0 -1"/>
  </worldbody>
</mujoco>
"""


def _centre(mask: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return rows.mean() / mask.shape[0], columns.mean() / mask.shape[1]


@pytest.mark.simulator
@pytest.mark.parametrize(
    "seen",
    [
        CameraView("fixed", camera="fixed"),
        CameraView("hanging", camera="hanging", flip=True),
        CameraView("moved", camera="hanging", position=(0.0, -3.0, 0.0), flip=True),
        CameraView("free", lookat=(0.0, 0.0, 0.0), distance=2.0, azimuth=90.0, elevation=0.0, fovy=45.0),
    ],
    ids=lambda seen: seen.name,
)
def test_pictures_are_upright_and_not_mirrored(seen):
    from mimicvideo.benchmark.rendering import SceneRenderer, import_mujoco, place_cameras

    mujoco = import_mujoco()
    model = mujoco.MjModel.from_xml_string(SCENE)
    place_cameras(model, [seen])
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = SceneRenderer(model, [seen], 48, 64)
    image = renderer.render(data)[seen.name].astype(int)
    renderer.close()
    assert image.shape == (48, 64, 3)
    red, green = image[..., 0] > 2 * image[..., 1] + 20, image[..., 1] > 2 * image[..., 0] + 20
    assert _centre(red)[1] > 0.55
    assert abs(_centre(red)[0] - 0.5) < 0.05
    assert _centre(green)[0] < 0.45
    assert abs(_centre(green)[1] - 0.5) < 0.05


@pytest.mark.simulator
def test_each_free_camera_has_its_own_field_of_view():
    from mimicvideo.benchmark.rendering import SceneRenderer, import_mujoco

    mujoco = import_mujoco()
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    narrow, wide = (
        CameraView(name, lookat=(0.0, 0.0, 0.0), distance=2.0, azimuth=90.0, elevation=0.0, fovy=fovy)
        for name, fovy in (("a", 25.0), ("b", 70.0))
    )
    renderer = SceneRenderer(model, [narrow, wide], 64, 64)
    images = renderer.render(data)
    renderer.close()
    red = {name: (image[..., 0].astype(int) > 2 * image[..., 1].astype(int) + 20).sum() for name, image in images.items()}
    assert red["a"] > 3 * red["b"] > 0


@pytest.mark.simulator
def test_pictures_larger_than_the_model_allows():
    from mimicvideo.benchmark.rendering import SceneRenderer, import_mujoco

    mujoco = import_mujoco()
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = SceneRenderer(model, [CameraView("fixed", camera="fixed")], 500, 700)  # MuJoCo's limit is 480 x 640 by default
    assert renderer.render(data)["fixed"].shape == (500, 700, 3)
    renderer.close()


@pytest.mark.simulator
def test_unknown_camera_of_the_model_is_refused():
    from mimicvideo.benchmark.rendering import import_mujoco, place_cameras

    model = import_mujoco().MjModel.from_xml_string(SCENE)
    with pytest.raises(ValueError, match="no camera 'corner2'; it has fixed, hanging"):
        place_cameras(model, [VIEWS["corner2"]])


@pytest.mark.simulator
def test_use_after_fork_is_refused_instead_of_hanging():
    from mimicvideo.benchmark.rendering import SceneRenderer, import_mujoco

    mujoco = import_mujoco()
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = SceneRenderer(model, [CameraView("fixed", camera="fixed")], 32, 32)
    renderer.render(data)
    renderer._process -= 1  # as a child sees it
    with pytest.raises(RuntimeError, match="spawn"):
        renderer.render(data)
    renderer.close()
