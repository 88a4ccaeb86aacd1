"""A random video model of a few hundred kB for the tests of this folder."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mimicvideo.video.adaptation import Adaptation, Frozen
from mimicvideo.video.backbone import VideoCondition
from mimicvideo.video.cosmos_predict import CosmosPredict
from tests.tiny_trio import tiny_trio


@pytest.fixture(autouse=True)
def one_thread():
    """These networks are too small to share, and other tests run beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trio() -> Path:
    """Not to be changed."""
    return Path(tiny_trio())


@pytest.fixture
def own_trio(trio: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(trio, tmp_path / "trio"))


@pytest.fixture
def build(trio: Path) -> Callable[..., CosmosPredict]:
    """`build(adaptation, **options)`."""

    def build(adaptation: Adaptation | None = None, **options) -> CosmosPredict:
        options = {"pretrained": str(trio), "prompt_tokens": 8} | options
        return CosmosPredict(adaptation=adaptation or Frozen(), **options)

    return build


@pytest.fixture
def scaled_mm(monkeypatch) -> list[tuple[torch.Size, torch.Size]]:
    """`torch._scaled_mm`, which is NVIDIA's, by its definition in float64; it must be called as that says. The shapes of all scales."""
    scales = []

    def product(a, b, scale_a, scale_b, bias, out_dtype, use_fast_accum):
        assert a.dtype == b.dtype == torch.float8_e4m3fn and a.is_contiguous() and b.t().is_contiguous()
        scales.append((scale_a.shape, scale_b.shape))
        y = (a.double() * scale_a) @ (b.double() * scale_b)
        return (y if bias is None else y + bias.double()).to(out_dtype)

    monkeypatch.setattr(torch, "_scaled_mm", product)
    return scales


@pytest.fixture(scope="session")
def frozen(trio: Path) -> CosmosPredict:
    """A frozen backbone, not to be changed."""
    return CosmosPredict(str(trio), Frozen(), prompt_tokens=8)


class Inputs:
    """Two samples: noisy latents of three frames, levels, and a condition with one or two observed latents."""

    def __init__(self, backbone: CosmosPredict, z_observed: int = 1, num_observed: list[int] | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.clean, self.noise = torch.randn(2, 2, 16, 3, 4, 6, generator=generator)
        self.tau = torch.tensor([0.3, 1.0])
        self.noisy = (1 - self.tau[:, None, None, None, None]) * self.clean + self.tau[:, None, None, None, None] * self.noise
        counts = None if num_observed is None else torch.tensor(num_observed)
        prompt = backbone.encode_prompt(["open the drawer", "press the button"])
        self.condition = VideoCondition(prompt, self.clean[:, :, :z_observed], counts)

    def all(self) -> tuple[torch.Tensor, torch.Tensor, VideoCondition]:
        """Arguments of `velocity` and, but for the blocks, of `hidden_states`."""
        return self.noisy, self.tau, self.condition


@pytest.fixture
def inputs() -> type[Inputs]:
    return Inputs


def perturb(backbone: CosmosPredict, scale: float = 0.05) -> None:
    """Moves everything that trains away from its start, where LoRA does nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter))


@pytest.fixture(name="perturb")
def perturb_fixture() -> Callable[..., None]:
    return perturb
