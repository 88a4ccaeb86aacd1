"""SafeCheckpoint: ModelCheckpoint whose files are whole or not there, with a SHA-256 beside each and verified before use."""

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from mimicvideo.checkpoint import SafeCheckpointIO


class SafeCheckpoint(ModelCheckpoint):
    """ModelCheckpoint with its arguments; when the disk is full the run stops and the previous checkpoint stays good.

    It takes over how the trainer writes and reads every checkpoint, `trainer.save_checkpoint` and resuming included. Another
    strategy's own way (FSDP's sharded folders, say) is left alone.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = SafeCheckpointIO()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves `last.ckpt` after the last step too, which `every_n_train_steps` need not divide."""
        if self.save_last and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
