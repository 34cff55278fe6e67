"""Numbers of 16 bits in fp32, where small steps add up that their own dtype would round away."""

from __future__ import annotations

import torch
from torch import Tensor


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which steps of ``tensor`` are summed: its own, at least fp32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def widened(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors, with fp32 copies in place of 16-bit ones: one kernel and one piece of memory for all copies.

    Args:
        tensors: any shapes, the 16-bit ones on one device.

    Returns:
        As many, in the same order.
    """
    low = [tensor for tensor in tensors if tensor.dtype.itemsize < torch.float32.itemsize]
    if not low:
        return tensors
    if any(hasattr(tensor, "to_local") for tensor in low):  # sharded ones know best how to make their copies
        return [tensor.to(wide_dtype(tensor)) for tensor in tensors]
    sizes = [tensor.numel() for tensor in low]
    blocks = torch.empty(sum(sizes), dtype=torch.float32, device=low[0].device).split(sizes)
    copies = [block.view(tensor.shape) for block, tensor in zip(blocks, low, strict=True)]
    torch._foreach_copy_(copies, low)
    wide = {id(tensor): copy for tensor, copy in zip(low, copies, strict=True)}
    return [wide.get(id(tensor), tensor) for tensor in tensors]


def write_back(params: list[Tensor], weights: list[Tensor]) -> None:
    """Rounds the wide copies in ``weights`` into their 16-bit parameters; a weight that is its parameter stays."""
    low = [(p, weight) for p, weight in zip(params, weights, strict=True) if p is not weight]
    if low:
        torch._foreach_copy_([p for p, _ in low], [weight for _, weight in low])
