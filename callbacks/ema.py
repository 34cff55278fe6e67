"""Exponential moving average of the denoiser's weights, updated once an optimizer step.

ema <- decay_k * ema + (1 - decay_k) * weights,   decay_k = min(decay, (1 + k) / (10 + k)) with warm-up, else decay
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from t2ikit.optim.precision import wide_dtype, widened


class EMA(L.Callback):
    """Averages the trainable floating-point weights of ``pl_module.denoiser``, and nothing else.

    The raw weights stay in the model and in the checkpoint's ``state_dict``; the averages are kept by this callback.
    Every evaluator reads them through ``applied``, so that no score is taken of other weights by accident.

    Args:
        decay: weight of the past, one or several profiles; the first is the one evaluated by default.
        warmup: start with shorter averages, ``min(decay, (1 + k) / (10 + k))`` at optimizer step k.

    Raises:
        ValueError: a decay outside [0, 1), or twice the same.

    Example:
        >>> with ema.applied(module):                      # doctest: +SKIP
        ...     images = module.sample(text, noise, steps=50)
    """

    def __init__(self, decay: float | list[float] = 0.9999, warmup: bool = True) -> None:
        super().__init__()
        decays = [decay] if isinstance(decay, (int, float)) else list(decay)
        if not decays or len(set(decays)) != len(decays) or not all(0.0 <= d < 1.0 for d in decays):
            raise ValueError(f"callbacks.ema: decay needs one or several different numbers in [0, 1), got {decay}")
        self.decays = [float(d) for d in decays]
        self.warmup = warmup
        self.step = 0
        self._seen = 0
        self._names: list[str] = []
        self._averages: dict[float, list[Tensor]] = {}
        self._loaded: dict[str, Any] | None = None
        self._swapped = False

    # ------------------------------------------------------------------ state

    @property
    def state_key(self) -> str:
        return "EMA"

    def state_dict(self) -> dict[str, Any]:
        profiles = {
            str(decay): dict(zip(self._names, tensors, strict=True)) for decay, tensors in self._averages.items()
        }
        return {"step": self.step, "profiles": profiles}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._swapped:
            raise RuntimeError("a checkpoint inside `with ema.applied(...)` would store averages as raw weights")

    # ------------------------------------------------------------------ updates

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start(pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._loaded is not None:
            self._restore(self._loaded)
            self._loaded = None
        self._seen = trainer.global_step

    def _start(self, pl_module: L.LightningModule) -> None:
        self._names, weights = _trainable(pl_module)
        self._averages = {decay: [w.detach().to(wide_dtype(w), copy=True) for w in weights] for decay in self.decays}

    def _restore(self, state: dict[str, Any]) -> None:
        for decay, averages in self._averages.items():
            stored = state["profiles"].get(str(decay))
            if stored is None:
                raise ValueError(
                    f"the checkpoint has no average of decay {decay} (it has {', '.join(state['profiles'])}): "
                    "set callbacks.ema.init_args.decay as it was"
                )
            if set(stored) != set(self._names):
                raise ValueError("the averages of the checkpoint belong to another denoiser: set it as it was")
            for name, average in zip(self._names, averages, strict=True):
                average.copy_(stored[name])
        self.step = int(state["step"])

    def decay_at(self, step: int, decay: float) -> float:
        """The decay of update ``step``, counted from 0."""
        return min(decay, (1 + step) / (10 + step)) if self.warmup else decay

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self._seen:  # only after an optimizer step, not after every accumulated micro-batch
            self._seen = trainer.global_step
            self.update(pl_module)

    @torch.no_grad()
    def update(self, pl_module: L.LightningModule) -> None:
        """One update of every profile from the present weights; no host sync."""
        weights = widened([w.detach() for w in _trainable(pl_module)[1]])
        for decay, averages in self._averages.items():
            torch._foreach_lerp_(averages, weights, 1.0 - self.decay_at(self.step, decay))
        self.step += 1

    # ------------------------------------------------------------------ use

    @contextmanager
    def applied(self, pl_module: L.LightningModule, decay: float | None = None) -> Iterator[None]:
        """The denoiser carries the averaged weights inside the block, and its own again after it, bit for bit.

        Args:
            pl_module: the module whose ``denoiser`` is averaged.
            decay: which profile; default the first.

        Raises:
            ValueError: no profile of that decay.
            RuntimeError: nested use.
        """
        decay = self.decays[0] if decay is None else decay
        if decay not in self._averages:
            raise ValueError(f"no EMA profile of decay {decay}; there are {self.decays}")
        if self._swapped:
            raise RuntimeError("the averaged weights are applied already")
        weights = _trainable(pl_module)[1]
        with torch.no_grad():
            raw = [w.detach().clone() for w in weights]
            torch._foreach_copy_([w.data for w in weights], self._averages[decay])
        self._swapped = True
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([w.data for w in weights], raw)
            self._swapped = False


def _trainable(pl_module: L.LightningModule) -> tuple[list[str], list[Tensor]]:
    """Names and tensors of the trainable floating-point parameters of the denoiser."""
    denoiser = pl_module.denoiser
    assert isinstance(denoiser, nn.Module)
    pairs = [(n, p) for n, p in denoiser.named_parameters() if p.requires_grad and p.is_floating_point()]
    return [name for name, _ in pairs], [parameter for _, parameter in pairs]
