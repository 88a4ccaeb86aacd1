"""Pictures to measure with, the same in our environment and in lerobot's: neither flat nor noise, so that codecs have usual work."""

from collections.abc import Iterator

import numpy as np
import torch


def scene(height: int, width: int, rows: int, seed: int) -> Iterator[np.ndarray]:
    """A soft texture that moves like a slow camera, a block that moves over it, and a little sensor noise; uint8 [height, width, 3]."""
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.random((1, 3, height // 16, width // 16), dtype=np.float32))
    field = torch.nn.functional.interpolate(coarse, (height + 64, width + 64), mode="bicubic")[0].permute(1, 2, 0).numpy()
    field = (255 * field.clip(0, 1)).astype(np.int16)
    for row in range(rows):
        y, x = int(32 + 30 * np.sin(row / 40)), int(32 + 30 * np.cos(row / 55))
        picture = field[y : y + height, x : x + width].copy()
        top, left = int((height - 60) * (0.5 + 0.5 * np.sin(row / 25))), int((width - 60) * (0.5 + 0.5 * np.cos(row / 35)))
        picture[top : top + 60, left : left + 60] = (200, 40, 40)
        picture += random.integers(-3, 4, picture.shape, dtype=np.int16)
        yield picture.clip(0, 255).astype(np.uint8)
