"""The training loss, compiled: first pass, main pass and, through autograd, the backward pass as one graph each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from t2ikit.batch import Text
from t2ikit.denoisers.base import Denoiser, kept_rows
from t2ikit.diffusion.objectives import Objective

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
GRAPHS = 256
"""Shapes that may be compiled, mostly text lengths: 256 tokens in buckets of 16 are 16 shapes; with windows (Crop), 8
sizes of each."""

STATIC_ROWS = 10
"""From this many rows of a batch up the number of self-conditioned ones is fixed."""


class CompiledLoss:
    """:meth:`Objective.loss` under ``torch.compile``, without graph breaks, one graph for each shape of a batch.

    Compiled at the first call. The denoiser itself stays as it is, so its weights keep their names.

    Args:
        objective: whose loss is compiled.
        compile: a mode of ``torch.compile``, or its options, e.g. ``{"backend": "aot_eager"}``.

    Raises:
        ValueError: an unknown mode, or an option that would allow graph breaks.
    """

    def __init__(self, objective: Objective, compile: str | dict[str, Any]) -> None:
        if isinstance(compile, str) and compile not in MODES:
            raise ValueError(f"compile must be null, one of {', '.join(MODES)}, or a mapping of options; got {compile}")
        self.options: dict[str, Any] = {"mode": compile} if isinstance(compile, str) else dict(compile)
        if not {"fullgraph", "dynamic"}.isdisjoint(self.options):
            raise ValueError("compile: fullgraph is always true and dynamic false; leave both out")
        self.objective = objective
        self._function: Callable[..., Tensor] | None = None

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        noise: Tensor,
        t: Tensor,
        text: Text,
        keep: Tensor,
        window: Tensor | None = None,
    ) -> Tensor:
        """As :meth:`Objective.loss`, with ``keep`` [B] bool on the CPU."""
        if self._function is None:
            dynamo: Any = torch._dynamo
            dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, GRAPHS)
            self._function = torch.compile(self.objective.loss, fullgraph=True, dynamic=False, **self.options)
        # Fewer rows keep any number of themselves: then all go through the first pass, so that the shape is one.
        rows = keep.to(x0.device) if len(keep) < STATIC_ROWS else kept_rows(keep, x0.device)
        return self._function(denoiser, x0, noise, t, text, rows, window)

    def __getstate__(self) -> dict[str, Any]:
        """Compiled code is neither copied nor sent to another process."""
        return {**self.__dict__, "_function": None}
