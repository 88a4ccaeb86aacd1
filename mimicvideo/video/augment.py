"""Changes to clips that teach a VAE colours and small things which its training videos lack."""

import torch
from jaxtyping import Float
from torch import Tensor

SIZES = (1.0, 8.0)  # half axes of pasted shapes, in pixels: from what a marker has at 128 x 128 to what an object has
SPEED = 1.5  # pixels per frame at most, along each axis


def shuffle_colours(
    pixels: Float[Tensor, "batch 3 frames height width"], probability: float, generator: torch.Generator
) -> Float[Tensor, "batch 3 frames height width"]:
    """Each clip, with this probability, gets its colour channels in another order and each of them inverted by the toss of a coin.

    Args:
        pixels: In [-1, 1].
        probability: In [0, 1].
        generator: On the CPU.
    """
    if probability == 0:
        return pixels
    batch = pixels.shape[0]
    order = torch.stack([torch.randperm(3, generator=generator) for _ in range(batch)])
    sign = 1.0 - 2.0 * torch.randint(0, 2, (batch, 3), generator=generator)
    chosen = torch.rand(batch, generator=generator) < probability
    order = torch.where(chosen[:, None], order, torch.arange(3)).to(pixels.device)
    sign = torch.where(chosen[:, None], sign, torch.ones(())).to(pixels)
    shuffled = pixels.gather(1, order[:, :, None, None, None].expand_as(pixels))
    return shuffled * sign[:, :, None, None, None]


def paste_shapes(
    pixels: Float[Tensor, "batch 3 frames height width"], most: int, generator: torch.Generator
) -> Float[Tensor, "batch 3 frames height width"]:
    """Up to `most` ellipses and rectangles of one colour each drift over every clip.

    Args:
        pixels: In [-1, 1].
        most: Shapes per clip; each clip has a random number of them from 0 to this.
        generator: On the CPU.
    """
    batch, _, frames, height, width = pixels.shape
    time, y, x = (torch.arange(size, device=pixels.device, dtype=torch.float32) for size in (frames, height, width))
    for _ in range(most):
        draws = torch.rand(batch, 11, generator=generator)
        shown = draws[:, 0] < most / (most + 1)
        small, large = SIZES
        half = small * (large / small) ** draws[:, 1:3]  # as often between 1 and 2 pixels as between 4 and 8
        middle = draws[:, 3:5] * torch.tensor([height, width])
        speed = (2 * draws[:, 5:7] - 1) * SPEED
        colour = (2 * draws[:, 7:10] - 1).to(pixels)
        round_ = (draws[:, 10] < 0.5).to(pixels.device)
        shown, half, middle, speed = (part.to(pixels.device) for part in (shown, half, middle, speed))
        dy = (y[None, None] - middle[:, :1, None] - speed[:, :1, None] * time[None, :, None]) / half[:, :1, None]
        dx = (x[None, None] - middle[:, 1:, None] - speed[:, 1:, None] * time[None, :, None]) / half[:, 1:, None]
        ellipse = dy[..., :, None].square() + dx[..., None, :].square() <= 1
        rectangle = (dy[..., :, None].abs() <= 1) & (dx[..., None, :].abs() <= 1)
        mask = torch.where(round_[:, None, None, None], ellipse, rectangle) & shown[:, None, None, None]
        pixels = torch.where(mask[:, None], colour[:, :, None, None, None], pixels)
    return pixels
