"""Statistics of dataset features in LeRobot's form: min, max, mean, std, count and five quantiles per dimension."""

from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


def of_values(values: Shaped[np.ndarray, "rows dim"]) -> dict[str, list[Any]]:
    """Statistics over rows, in float64; `std` divides by the number of rows.

    Booleans count as 0 and 1.
    """
    values = values.astype(np.float64)
    statistics = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    return {
        **{name: value.tolist() for name, value in statistics.items()},
        "count": [len(values)],
        **{name: value.tolist() for name, value in zip(QUANTILES, quantiles, strict=True)},
    }


def of_histogram(histogram: Int64[np.ndarray, "3 256"], frames: int) -> dict[str, list[Any]]:
    """Statistics of pictures from the histogram of their pixels, per colour channel, in [0, 1] and shape [3, 1, 1] as LeRobot has them.

    Args:
        histogram: How often each of the 256 values occurs, by channel.
        frames: How many pictures it was taken from: LeRobot's `count`.
    """
    levels = np.arange(256) / 255.0
    share = histogram / histogram.sum(1, keepdims=True)
    cumulative = share.cumsum(1)
    mean = share @ levels
    statistics = {
        "min": levels[(histogram > 0).argmax(1)],
        "max": levels[255 - (histogram[:, ::-1] > 0).argmax(1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(share @ levels**2 - mean**2, 0)),
        **{name: levels[(cumulative >= quantile).argmax(1)] for name, quantile in QUANTILES.items()},
    }
    return {**{name: value.reshape(3, 1, 1).tolist() for name, value in statistics.items()}, "count": [frames]}
