"""The order in which people count: demo_2 before demo_10."""

import re


def natural(name: str) -> list[tuple[int, str]]:
    """A key to sort names by."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
