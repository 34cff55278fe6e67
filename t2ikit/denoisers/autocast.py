"""Automatic mixed precision: its dtype, its cache of cast weights, and a pass without gradients beside one with them.

Shape legend::

    B  samples        R  rows that are kept
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@torch.compiler.assume_constant_result
def _has_autocast(device_type: str) -> bool:
    """Whether autocast knows a kind of device. Dynamo of PyTorch 2.11 cannot look into the question."""
    return torch.amp.is_autocast_available(device_type)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype to which autocast casts on a kind of device at present, or None where it is off or unknown.

    Compiled code asks again whenever autocast has changed: Dynamo guards its state.
    """
    if _has_autocast(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def _casts_keep_their_graph() -> bool:
    """Whether a weight that autocast casts under no_grad for its cache still hands gradients back to the weight.

    Older PyTorch (issue 65766) caches a copy without a graph, which cuts the gradient of the passes that find it.
    """
    weight = nn.Parameter(torch.zeros(1, 1, device="cpu"))
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            nn.functional.linear(weight, weight)
        return nn.functional.linear(weight.detach(), weight).requires_grad


CACHE_IS_SAFE = _casts_keep_their_graph()


@contextmanager
def without_graph(device_type: str) -> Iterator[None]:
    """No gradients; the low-precision copies of weights that autocast makes here serve the passes that follow.

    Where those copies would cut the gradients of these passes, autocast keeps none.
    """
    with torch.no_grad():
        dtype = autocast_dtype(device_type)
        if dtype is not None and not CACHE_IS_SAFE:
            with torch.autocast(device_type, dtype=dtype, cache_enabled=False):
                yield
        else:
            yield


def kept_rows(keep: Tensor, device: torch.device) -> Tensor:
    """int64 [R] on ``device``, where ``keep`` [B] bool is True, or ``keep`` itself if it is such an index already.

    No host sync when ``keep`` is on the CPU.
    """
    index = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
    if index.device != device and device.type == "cuda":
        index = index.pin_memory()
    return index.to(device, non_blocking=True)
