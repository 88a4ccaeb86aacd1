"""Datasets in RLDS form as tensorflow-datasets prepares them, such as those of Open X-Embodiment, read in place and without TensorFlow."""

from mimicvideo.data.rlds.store import RldsStore

__all__ = ["RldsStore"]
