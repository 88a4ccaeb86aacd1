"""Shapes in annotations are checked in every test: jaxtyping's hook wraps the package's functions while they are imported."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

import tests.shapes  # noqa: F401 (the hook looks the checker up in here)

install_import_hook("mimicvideo", "tests.shapes.check_shapes")
