"""The training loss, compiled: first pass, main pass and, through autograd, the backward pass as one graph each.

Or its blocks alone: 24 equal blocks are one graph, which is compiled in a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from t2ikit.batch import Batch
from t2ikit.denoisers.base import Denoiser
from t2ikit.diffusion.objectives import Draws, Loss, Objective

BLOCKS = "blocks"
MODES = (BLOCKS, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
GRAPHS = 256
"""Shapes that may be compiled, mostly text lengths: 256 tokens in buckets of 16 are 16 shapes; with windows (Crop), 8
sizes of each."""


def compiled(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """``function`` under ``torch.compile``, without graph breaks, with as many graphs as there are shapes."""
    dynamo: Any = torch._dynamo
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, GRAPHS)
    return torch.compile(function, fullgraph=True, dynamic=False, **options)


def compiled_blocks(options: dict[str, Any]) -> Callable[..., Any]:
    """A caller for :meth:`Denoiser.called_by` that compiles blocks; blocks of one kind and shape are one graph."""
    return compiled(_call, options)


def _call(block: Callable[..., Any], *args: Any) -> Any:
    return block(*args)


class CompiledObjective:
    """An objective's loss under ``torch.compile``, without graph breaks, one graph for each shape of a batch.

    Compiled at the first call. Denoiser and objective stay as they are, so their weights keep their names.

    Args:
        objective: whose loss is compiled.
        compile: a mode of ``torch.compile``, or its options, e.g. ``{"backend": "aot_eager"}``. "blocks" compiles the
            blocks of the denoiser in the default mode and leaves the rest as it is; ``blocks: true`` among options
            does so with them.

    Raises:
        ValueError: an unknown mode, or an option that would allow graph breaks.
    """

    def __init__(self, objective: Objective, compile: str | dict[str, Any]) -> None:
        if isinstance(compile, str) and compile not in MODES:
            raise ValueError(f"compile must be null, one of {', '.join(MODES)}, or a mapping of options; got {compile}")
        self.options: dict[str, Any] = {"mode": compile} if isinstance(compile, str) else dict(compile)
        self.blocks = bool(self.options.pop("blocks", False))
        if compile == BLOCKS:
            self.blocks, self.options = True, {"mode": "default"}
        if not {"fullgraph", "dynamic"}.isdisjoint(self.options):
            raise ValueError("compile: fullgraph is always true and dynamic false; leave both out")
        self.objective = objective
        self._function: Callable[..., Any] | None = None

    def __call__(self, denoiser: Denoiser, batch: Batch, draws: Draws) -> Loss:
        """As :meth:`Objective.forward`, with ``draws`` as :meth:`Objective.draw` gave them."""
        if self._function is None:
            self._function = compiled_blocks(self.options) if self.blocks else compiled(_loss, self.options)
        if self.blocks:
            with denoiser.called_by(self._function):
                return cast(Loss, self.objective(denoiser, batch, draws))
        return Loss(*self._function(self.objective, denoiser, batch, draws.static(batch.latents.device)))

    def __getstate__(self) -> dict[str, Any]:
        """Compiled code is neither copied nor sent to another process."""
        return {**self.__dict__, "_function": None}


def _loss(objective: Objective, denoiser: Denoiser, batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
    loss: Loss = objective(denoiser, batch, draws)
    return loss.loss_B, loss.parts
