"""Exponential moving averages of a network's weights.

ema <- decay_k * ema + (1 - decay_k) * weights,   decay_k = min(decay, (1 + k) / (10 + k)) with warm-up, else decay
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from t2ikit.optim.precision import wide_dtype, widened


class Averages:
    """One or several averages of the trainable floating-point weights of a network, which keeps its own weights.

    Args:
        network: whose weights are averaged; averages start at its present ones.
        decays: weight of the past, one a profile, each in [0, 1); the first is the one that is evaluated by default.
        warmup: start with shorter averages, ``min(decay, (1 + k) / (10 + k))`` at update k.
    """

    def __init__(self, network: nn.Module, decays: Sequence[float], warmup: bool = True) -> None:
        self.network, self.decays, self.warmup = network, list(decays), warmup
        self.step = 0
        self.applied_now = False
        self._names, weights = self._trainable()
        self._averages = {decay: [w.detach().to(wide_dtype(w), copy=True) for w in weights] for decay in self.decays}

    def state(self) -> dict[str, Any]:
        """Updates done, and the averages by profile and name, for a checkpoint."""
        profiles = {
            str(decay): dict(zip(self._names, tensors, strict=True)) for decay, tensors in self._averages.items()
        }
        return {"step": self.step, "profiles": profiles}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state` gave.

        Raises:
            ValueError: another decay, or the averages of another network.
        """
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

    @torch.no_grad()
    def update(self) -> None:
        """One update of every profile from the present weights; no host sync."""
        weights = widened([w.detach() for w in self._trainable()[1]])
        for decay, averages in self._averages.items():
            torch._foreach_lerp_(averages, weights, 1.0 - self.decay_at(self.step, decay))
        self.step += 1

    @contextmanager
    def applied(self, decay: float | None = None) -> Iterator[None]:
        """The network carries the averages inside the block, and its own weights again after it, bit for bit.

        Args:
            decay: which profile; default the first.

        Raises:
            ValueError: no profile of that decay.
            RuntimeError: nested use.
        """
        decay = self.decays[0] if decay is None else decay
        if decay not in self._averages:
            raise ValueError(f"no EMA profile of decay {decay}; there are {self.decays}")
        if self.applied_now:
            raise RuntimeError("the averaged weights are applied already")
        weights = self._trainable()[1]
        with torch.no_grad():
            raw = [w.detach().clone() for w in weights]
            torch._foreach_copy_([w.data for w in weights], self._averages[decay])
        self.applied_now = True
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([w.data for w in weights], raw)
            self.applied_now = False

    def _trainable(self) -> tuple[list[str], list[Tensor]]:
        """Names and tensors of the trainable floating-point parameters."""
        pairs = [(n, p) for n, p in self.network.named_parameters() if p.requires_grad and p.is_floating_point()]
        return [name for name, _ in pairs], [parameter for _, parameter in pairs]
