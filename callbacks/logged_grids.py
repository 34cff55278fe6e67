"""The pictures of a snapshot for each kind of logger: each takes them in a way of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger
from torch import Tensor


def log_grid(logger: Any, snapshot: str, picture: Tensor, texts: Sequence[str], step: int) -> None:
    """Hands a grid to a logger; one that knows no pictures gets none.

    Args:
        logger: of a run.
        snapshot: whose name the picture has.
        picture: the grid, [3, H, W] uint8.
        texts: prompts in the order of the grid.
        step: optimizer steps done.
    """
    log_picture(logger, f"{snapshot}/grid", picture, step, texts)
    if isinstance(logger, TensorBoardLogger):
        listed = "\n".join(f"{index}. {text}" for index, text in enumerate(texts))
        logger.experiment.add_text(f"{snapshot}/prompts", listed, global_step=step)


def log_picture(logger: Any, name: str, picture: Tensor, step: int, texts: Sequence[str] = ()) -> None:
    """Hands a picture to a logger; one that knows no pictures gets none.

    Args:
        logger: of a run.
        name: of the picture.
        picture: [3, H, W] uint8.
        step: optimizer steps done.
        texts: its caption, line by line.
    """
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, picture, global_step=step)
    elif isinstance(logger, MLFlowLogger):
        pixels = picture.permute(1, 2, 0).cpu().numpy()
        logger.experiment.log_image(logger.run_id, pixels, artifact_file=f"{name}/step-{step:08d}.png")
    elif type(logger).__module__.partition(".")[0] == "aim":
        import aim
        from PIL import Image

        image = Image.fromarray(picture.permute(1, 2, 0).cpu().numpy())
        logger.experiment.track(aim.Image(image, caption="\n".join(texts)), name=name, step=step)
    elif hasattr(logger, "log_image"):  # Weights & Biases, whose tensors are floats in [0, 1]
        pixels = picture.permute(1, 2, 0).cpu().numpy()
        logger.log_image(name, [pixels], step=step, caption=["\n".join(texts)])
