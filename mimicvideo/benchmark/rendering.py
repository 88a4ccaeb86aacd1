"""Pictures of a MuJoCo scene: camera views, and a renderer that is fast, repeatable and says what it lacks."""

import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import UInt8

GL_PACKAGES = {"egl": "libegl1 libgl1-mesa-dri", "osmesa": "libosmesa6", "glfw": "libglfw3"}


@dataclass(frozen=True)
class CameraView:
    """Where a camera stands. Either `camera` (one of the model's) or `lookat`, `distance`, `azimuth`, `elevation` (a free camera).

    Attributes:
        name: What the camera is called in datasets and checkpoints.
        camera: A camera of the model.
        position: Moves `camera` there, in metres; only for cameras that do not ride on the robot.
        flip: Turns the picture by 180 degrees.
        lookat: Point in the middle of a free camera's picture, in metres.
        distance: From `lookat`, in metres.
        azimuth: Around the vertical axis, in degrees; 90 looks along +y, away from the robot's base.
        elevation: In degrees; negative looks down.
        fovy: Vertical field of view in degrees; None keeps the model's (45 for a free camera).
    """

    name: str
    camera: str | None = None
    position: tuple[float, float, float] | None = None
    flip: bool = False
    lookat: tuple[float, float, float] | None = None
    distance: float | None = None
    azimuth: float | None = None
    elevation: float | None = None
    fovy: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a view that is neither a camera of the model nor a complete free camera."""
        free = {key: getattr(self, key) for key in ("lookat", "distance", "azimuth", "elevation")}
        if self.camera is None:
            if missing := [key for key, value in free.items() if value is None]:
                raise ValueError(f"camera {self.name!r}: a free camera also needs {', '.join(missing)}")
        elif given := [key for key, value in free.items() if value is not None]:
            raise ValueError(f"camera {self.name!r}: {', '.join(given)} cannot go with the model's camera {self.camera!r}")
        if self.fovy is not None and not 0 < self.fovy < 180:
            raise ValueError(f"camera {self.name!r}: fovy must lie between 0 and 180 degrees, got {self.fovy}")

    def spec(self) -> dict[str, Any]:
        """The view as JSON can hold it; `view` reads it back."""
        given = {key: value for key, value in asdict(self).items() if value is not None and value is not False}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}


MODEL_CAMERAS = ("corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")

# The corner cameras hang upside down in Meta-World's model. corner2 is moved to where Meta-World's documentation puts it.
VIEWS: dict[str, CameraView] = {
    **{name: CameraView(name, camera=name, flip=name.startswith("corner")) for name in MODEL_CAMERAS},
    "corner2": CameraView("corner2", camera="corner2", position=(0.75, 0.075, 0.7), flip=True),
    "workspace": CameraView("workspace", lookat=(-0.04, 0.68, 0.11), distance=1.3, azimuth=130.0, elevation=-30.0, fovy=40.0),
    # Faces the robot; two views fix the place of what floats above the table, which one cannot.
    "front": CameraView("front", lookat=(0.0, 0.68, 0.12), distance=1.2, azimuth=-90.0, elevation=-35.0, fovy=40.0),
}


def view(given: str | Mapping[str, Any] | CameraView) -> CameraView:
    """A camera view from its name in VIEWS, from the fields of CameraView, or as it is.

    Raises:
        ValueError: If the name is not in VIEWS, or the fields do not make a view.
    """
    if isinstance(given, CameraView):
        return given
    if isinstance(given, str):
        if given not in VIEWS:
            raise ValueError(
                f"there is no camera view {given!r}: choose from {', '.join(VIEWS)}, or give lookat, distance, azimuth, elevation"
            )
        return VIEWS[given]
    known = [field.name for field in fields(CameraView)]
    if unknown := [key for key in given if key not in known]:
        raise ValueError(f"camera {given.get('name', '?')!r}: unknown field {unknown[0]!r}; a view has {', '.join(known)}")
    if "name" not in given:
        raise ValueError(f"a camera view needs a name, got {dict(given)}")
    if set(given) == {"name"} and given["name"] in VIEWS:
        return VIEWS[given["name"]]
    return CameraView(**{key: _value(given["name"], key, value) for key, value in given.items()})


def _value(name: str, key: str, value: Any) -> Any:
    """A field of CameraView from what JSON holds: whole numbers and lists become floats and tuples."""
    try:
        if key in ("lookat", "position"):
            x, y, z = (float(number) for number in value)
            return (x, y, z)
        return float(value) if key in ("distance", "azimuth", "elevation", "fovy") else value
    except (TypeError, ValueError) as error:
        wanted = "three numbers [x, y, z]" if key in ("lookat", "position") else "a number"
        raise ValueError(f"camera {name!r}: {key} must be {wanted}, got {value!r}") from error


def import_mujoco() -> ModuleType:
    """Imports mujoco for rendering without a display.

    Sets MUJOCO_GL to `egl` if it is unset (a GPU if there is one, else Mesa's software), and one thread per process for the
    latter: simulators run side by side.

    Raises:
        RuntimeError: If mujoco is not installed or the GL library is missing; the message names the Debian packages.
    """
    os.environ["MUJOCO_GL"] = os.environ.get("MUJOCO_GL") or "egl"
    os.environ.setdefault("LP_NUM_THREADS", "1")
    try:
        import mujoco
    except ModuleNotFoundError as error:
        raise RuntimeError(f'{error.name} is not installed: pip install "mimicvideo[sim]"') from error
    except (ImportError, AttributeError, OSError, RuntimeError) as error:  # PyOpenGL stumbles in many ways
        raise RuntimeError(missing_gl(error)) from error
    chosen, found = os.environ["MUJOCO_GL"].lower(), getattr(mujoco, "GLContext", None)
    if chosen in GL_PACKAGES and found is not None and chosen not in found.__module__:  # rendering would abort the process
        raise RuntimeError(f"mujoco was imported before MUJOCO_GL={chosen} was set, and renders with {found.__module__}: set it first")
    return mujoco


def missing_gl(error: BaseException) -> str:
    """What to do when no picture can be rendered."""
    chosen = os.environ.get("MUJOCO_GL", "egl").lower()
    return (
        f"cannot render with MUJOCO_GL={chosen} ({type(error).__name__}: {error}). On Debian: apt-get install {GL_PACKAGES['egl']}; "
        f"or apt-get install {GL_PACKAGES['osmesa']} and set MUJOCO_GL=osmesa"
    )


def place_cameras(model: Any, views: Sequence[CameraView]) -> None:
    """Moves a model's cameras to where the views want them. MuJoCo's next forward pass makes it so in its data.

    Raises:
        ValueError: If a view names a camera that the model does not have.
    """
    names = [model.cam(index).name for index in range(model.ncam)]
    for view in views:
        if view.camera is None:
            continue
        if view.camera not in names:
            raise ValueError(f"camera {view.name!r}: the model has no camera {view.camera!r}; it has {', '.join(names)}")
        if view.position is not None:
            model.cam(view.camera).pos = view.position
        if view.fovy is not None:
            model.cam(view.camera).fovy = view.fovy


class SceneRenderer:
    """Renders one model from a few views. Belongs to the process that made it: GL contexts do not survive a fork."""

    def __init__(self, model: Any, views: Sequence[CameraView], height: int, width: int) -> None:
        """
        Args:
            model: An MjModel after `place_cameras`. Its render settings are changed.
            views: One or more views with different names.
            height: Of a picture, in pixels; the same for all views.
            width: Likewise.

        Raises:
            ValueError: If the size is not positive.
            RuntimeError: If the GL library is missing.
        """
        if height < 1 or width < 1:
            raise ValueError(f"pictures must be at least 1x1 pixels, got height {height}, width {width}")
        mujoco = import_mujoco()
        self._mujoco, self._model, self._views, self._process = mujoco, model, tuple(views), os.getpid()
        self._cameras = [self._camera(view) for view in views]
        model.vis.quality.offsamples = 0  # no anti-aliasing: ten times faster in software
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        try:
            self._renderer = mujoco.Renderer(model, height, width)
        except (ImportError, AttributeError, OSError, RuntimeError, mujoco.FatalError) as error:
            raise RuntimeError(missing_gl(error)) from error
        self._free = weakref.finalize(self, self._renderer.close)  # else its own __del__ complains at the interpreter's end
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0

    def render(self, data: Any) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
        """A picture of an MjData from each view, by the view's name.

        Raises:
            RuntimeError: In a process forked off the one that made the renderer; it would hang.
        """
        if os.getpid() != self._process:
            raise RuntimeError("a renderer cannot be used after a fork: start worker processes with the `spawn` method")
        images = {}
        for view, camera in zip(self._views, self._cameras, strict=True):
            if isinstance(camera, self._mujoco.MjvCamera):
                self._model.vis.global_.fovy = view.fovy or 45.0
            self._renderer.update_scene(data, camera)
            image = self._renderer.render()
            images[view.name] = np.ascontiguousarray(image[::-1, ::-1]) if view.flip else image
        return images

    def device(self) -> str:
        """What draws, as OpenGL names it: a GPU or `llvmpipe` (software)."""
        from OpenGL import GL

        self._renderer._gl_context.make_current()
        return bytes(GL.glGetString(GL.GL_RENDERER) or b"unknown").decode()

    def close(self) -> None:
        """Frees the GL context; happens by itself when the renderer is dropped or the process ends."""
        self._free()

    def _camera(self, view: CameraView) -> Any:
        """What MuJoCo wants for a view: the name of one of the model's cameras, or a free camera."""
        if view.camera is not None:
            return view.camera
        camera = self._mujoco.MjvCamera()
        camera.type = self._mujoco.mjtCamera.mjCAMERA_FREE
        camera.lookat[:] = view.lookat
        camera.distance, camera.azimuth, camera.elevation = view.distance, view.azimuth, view.elevation
        return camera


def tile(images: Mapping[str, UInt8[np.ndarray, "height width 3"]]) -> UInt8[np.ndarray, "height tiled_width 3"]:
    """Pictures of several cameras side by side, in their order."""
    return np.concatenate(list(images.values()), axis=1) if len(images) > 1 else next(iter(images.values()))
