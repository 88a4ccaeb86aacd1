"""Models and data that train in milliseconds: the command line and sweeps are tested with them."""

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mimicvideo.noise import NoiseLevels


class ToyBackbone(nn.Module):
    """Says when it is built: a configuration that is refused must not get that far."""

    def __init__(self, width: int = 4, fail: str | None = None) -> None:
        super().__init__()
        print("the backbone is built")
        if fail:
            raise ValueError(fail)
        self.width = width


@dataclass(frozen=True)
class ToyShape:
    """What a decoder is told by the model that makes it."""

    width: int
    action_dim: int


class ToyDecoder(nn.Module, ABC):
    """Base class of the toy decoders."""


class Linear(ToyDecoder):
    """One layer."""

    def __init__(self, shape: ToyShape, gain: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(shape.width, shape.action_dim)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.layer(x)


class Mlp(ToyDecoder):
    """Two layers."""

    def __init__(self, shape: ToyShape, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(shape.width, width), nn.Tanh(), nn.Linear(width, shape.action_dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ToyPolicy(LightningModule):
    """Shaped like ActionPolicy: nested classes, a factory, arguments that come from the data. Its loss depends on `tau`."""

    def __init__(
        self,
        backbone: ToyBackbone,
        decoder: Callable[[ToyShape], ToyDecoder],
        noise: NoiseLevels,
        action_dim: int,
        horizon: int,
        tau: float = 0.5,
        num_steps: int = 10,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["backbone", "decoder", "noise"])
        self.decoder = decoder(ToyShape(backbone.width, action_dim))
        self.tau, self.optimizer = tau, optimizer

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = (self.decoder(batch) - self.tau).square().mean()
        self.log("train/loss", loss)
        self.log("train/tau", self.tau, sync_dist=True)  # the mean over ranks, which should all have the same
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", (self.decoder(batch) - self.tau).square().mean())

    def predict_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        return {"actions": self.decoder(batch), "row": batch_idx * 4 + torch.arange(4)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.decoder.parameters())


class ToyVideo(LightningModule):
    """Shaped like VideoFinetune: takes nothing from the data."""

    def __init__(self, backbone: ToyBackbone, tau: float = 0.5) -> None:
        super().__init__()


class ToyData(LightningDataModule):
    """Eight fixed batches."""

    def __init__(self, root: str = "nowhere", width: int = 4, action_dim: int = 2, horizon: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.width, self.seed = width, seed

    def train_dataloader(self) -> DataLoader:
        samples = torch.randn(32, self.width, generator=torch.Generator().manual_seed(self.seed))
        return DataLoader(samples, batch_size=4)  # type: ignore[arg-type]

    val_dataloader = predict_dataloader = train_dataloader


class ToyClips(LightningDataModule):
    """Data without actions."""

    def __init__(self, root: str = "nowhere") -> None:
        super().__init__()
