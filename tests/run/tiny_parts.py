"""A model, data and callbacks of a few numbers, in a file outside the package."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import Checkpoint
from torch.utils.data import DataLoader, TensorDataset


class Net(torch.nn.Module):
    """Base of the networks."""


class Line(Net):
    """A line.

    Args:
        width: how many inputs.
        schedule: a choice.
    """

    def __init__(self, width: int = 1, schedule: Literal["cosine", "sigmoid"] = "cosine") -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        self.layer = torch.nn.Linear(width, 1)


class Curve(Net):
    """A curve.

    Args:
        depth: how often it bends.
    """

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)


@dataclass
class Sizes:
    """Two sizes."""

    a: int = 1
    b: float | None = None


class Model(LightningModule):
    """Fits a line.

    Args:
        net: the network.
        lr: step size.
        sizes: two sizes.
        nets: more networks.
        space: a size or two.
    """

    def __init__(
        self,
        net: Net,
        lr: float = 0.1,
        sizes: Sizes | None = None,
        nets: list[Net] | None = None,
        space: int | tuple[int, int] = 3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["net", "sizes", "nets"])
        self.net, self.lr, self.sizes, self.nets, self.space = net, lr, sizes, nets, space

    def training_step(self, batch: Any, index: int) -> Any:
        loss = (self.net.layer(batch[0]) - 2 * batch[0]).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Data(LightningDataModule):
    """Eight numbers.

    Args:
        root: a folder that must be there; "" needs none.
        batch_size: samples a step.
    """

    def __init__(self, root: str = "", batch_size: int = 4) -> None:
        super().__init__()
        self.root, self.batch_size = root, batch_size

    def setup(self, stage: str) -> None:
        Path("touched").write_text("data")
        if self.root and not Path(self.root).is_dir():
            raise FileNotFoundError(f"no prepared data in {self.root}: set --data.root or run `t2ikit prepare encode`")

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.arange(8.0)[:, None] / 8), batch_size=self.batch_size)


class Gate(Callback):
    """A gate.

    Args:
        tau: in [0, 1].
        name: of the gate.
    """

    def __init__(self, tau: float = 0.5, name: str = "gate") -> None:
        if not 0 <= tau <= 1:
            raise ValueError(f"tau must lie in [0, 1], got {tau}")
        self.tau, self.name = tau, name

    def validate_experiment(self, experiment: Any) -> None:
        if self.tau == 1 and experiment.data.batch_size == 8:
            raise ValueError("tau 1 and batch size 8 contradict each other")


class Save(Checkpoint):
    """Saves every step.

    Args:
        every: steps.
    """

    def __init__(self, every: int = 1) -> None:
        self.every = every

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step % self.every == 0:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / f"checkpoints/step-{trainer.global_step:08d}.ckpt")


class Stop(Callback):
    """Stops the run by a signal, or breaks it.

    Args:
        at: the step.
        how: error, or the name of a signal.
    """

    def __init__(self, at: int, how: str = "SIGTERM") -> None:
        self.at, self.how = at, how

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.at:
            if self.how == "error":
                raise ValueError("a defect in the middle")
            signal.raise_signal(signal.Signals[self.how])  # in this thread: os.kill may be served a step later
