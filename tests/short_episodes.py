"""Short episodes of two numbers and one small camera, made when they are asked for: what they hold is a subclass's business."""

from pathlib import Path

from mimicvideo.data.episodes import Camera, Episode, Episodes


class ShortEpisodes(Episodes):
    """One episode of six rows for each sentence."""

    def __init__(self, root: Path, sentences: list[str]) -> None:
        super().__init__(
            root,
            [Episode(index, 6, (sentence,), "push") for index, sentence in enumerate(sentences)],
            {},
            [Camera("front", "front", 8, 8, {})],
            robot="test-arm",
            control_hz=10.0,
            stride=1,
            proprio_names=["x", "y"],
            action_names=["dx", "dy"],
            ram_cache_gb=0.0,
        )
