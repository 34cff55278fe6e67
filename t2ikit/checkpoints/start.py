"""How a run starts from the weights of another one, and which of its parameters it trains.

Shapes: a position table is [N, D], one row a token, row by row over the grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch

from t2ikit.checkpoints.denoiser import Weights, stored_denoiser, stored_weights
from t2ikit.checkpoints.files import read_weights
from t2ikit.checkpoints.foreign import refuse_foreign
from t2ikit.checkpoints.runs import find_checkpoint
from t2ikit.config.errors import ConfigError
from t2ikit.config.origins import Origins
from t2ikit.denoisers import Denoiser
from t2ikit.pretrained import sha256_of

Fit = Literal["strict", "resize", "grow"]


@dataclass(frozen=True)
class Start:
    """The weights that a fresh run starts from; a resumed run ignores it.

    Attributes:
        checkpoint: a ``step-*.ckpt`` or a run folder; in an experiment with stages also ``stages.NAME``, the end of
            that stage, or ``stages.NAME@STEP``.
        weights: "ema" for the averages, "raw" for the weights themselves, "auto" for the averages where there are any.
        fit: "strict": names and shapes must be equal, and the grid of learned positions. "resize": these may be of
            another grid, and are interpolated. "grow": only the parts of ``take`` are taken, and must be equal; the
            rest stays fresh.
        take: with "grow", names of parts of the denoiser ("time", "text", "core", "shell").

    Raises:
        ValueError: an unknown ``fit``, or ``take`` without "grow" and the reverse.
    """

    checkpoint: str
    weights: Weights = "ema"
    fit: Fit = "strict"
    take: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.fit not in ("strict", "resize", "grow"):
            raise ValueError(f"start: fit must be strict, resize or grow, got {self.fit!r}")
        if bool(self.take) != (self.fit == "grow"):
            raise ValueError("start: take names the parts that fit 'grow' takes; give both or neither")

    def path(self) -> Path:
        """The checkpoint file.

        Raises:
            ConfigError: there is none, or it is a stage of an experiment without stages.
        """
        key = "model.init_args.start.checkpoint"
        if self.checkpoint.startswith("stages.") and not Path(self.checkpoint).exists():
            raise ConfigError(f"{key}: {self.checkpoint} is the end of a stage, but the experiment has no `stages`")
        return find_checkpoint(Path(self.checkpoint), key)

    def read(self) -> tuple[Path, Mapping[str, Any]]:
        """The checkpoint file and its content.

        Raises:
            ConfigError: no such checkpoint, or it is none of a run.
        """
        path = self.path()
        return path, refuse_foreign(read_weights(path, mmap=True), path, "model.init_args.start")


def start_from(
    denoiser: Denoiser, start: Start, path: Path, content: Mapping[str, Any], origins: Origins | None = None
) -> dict[str, str]:
    """Gives a fresh denoiser the weights that ``start`` names; ``path`` and ``content`` are those of ``start.read()``.

    Args:
        denoiser: changed in place.
        start: what is taken.
        path: of the checkpoint.
        content: of the checkpoint.
        origins: which modules the class paths in it may name.

    Returns:
        What a checkpoint remembers of it: where they came from, their hash, which they are, and what stayed fresh.

    Raises:
        ValueError: weights that do not fit, named; nothing is changed then.
    """
    try:
        weights, label = stored_weights(content, path, start.weights)
        grid = _grid_of_positions(content, path, origins) if denoiser.positions else None
        changes = denoiser.adopt(weights, start.fit, start.take, grid)
    except ValueError as error:
        raise ValueError(f"model.init_args.start: {path}: {error}") from error
    return {"checkpoint": str(path), "sha256": sha256_of(path), "weights": label, "fit": start.fit, "changes": changes}


def _grid_of_positions(content: Mapping[str, Any], path: Path, origins: Origins | None) -> tuple[int, int] | None:
    """Rows and columns of the learned positions in a checkpoint; None where its denoiser does not say it."""
    for device in ("meta", "cpu"):  # a constructor that reads the value of a tensor cannot run without values
        try:
            with torch.device(device), torch.random.fork_rng(devices=[]):
                source = stored_denoiser(content, path, origins)
        except Exception:  # at last a class of which only the weights are left
            continue
        return getattr(source, "grid", None) if source.positions else None
    return None


def train_only(denoiser: Denoiser, trainable: Sequence[str]) -> None:
    """Freezes every parameter but those that are named.

    Args:
        denoiser: changed in place.
        trainable: names of its parts, or patterns of parameter names such as ``blocks.*.mlp.*``.

    Raises:
        ValueError: no name, or one that is neither a part nor matches a parameter.
    """
    if not trainable:
        raise ValueError("model.init_args.trainable: names nothing to train; null trains all")
    names = [name for name, _ in denoiser.named_parameters()]
    chosen: set[str] = set()
    for entry in trainable:
        prefixes = denoiser.parts.get(entry)
        matching = [
            name
            for name in names
            if (fnmatchcase(name, entry) if prefixes is None else name.startswith(tuple(prefixes)))
        ]
        if not matching:
            raise ValueError(
                f"model.init_args.trainable: {entry!r} is no part of {type(denoiser).__name__} "
                f"({', '.join(denoiser.parts)}), and no parameter matches it"
            )
        chosen.update(matching)
    for name, parameter in denoiser.named_parameters():
        parameter.requires_grad_(name in chosen)
