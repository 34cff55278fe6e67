"""The nearest few of every row, from blocks of distances that are seen once.

Shape legend::

    N  rows    K  nearest kept of each    R, C  rows and columns of a block
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

FEW = 64  # one distance in so many may be among the nearest before a block is selected from as a whole


class Nearest:
    """The nearest columns of every row, of all distances seen so far.

    Attributes:
        values: [N, K] float32 squared distances, smallest first; infinite where fewer were seen.
        columns: [N, K] of these distances.
    """

    def __init__(self, rows: int, kept: int, device: torch.device) -> None:
        self.values = torch.full((rows, kept), math.inf, device=device)
        self.columns = torch.zeros(rows, kept, dtype=torch.int64, device=device)

    def add(self, squares: Tensor, row: int, column: int, turned: bool = False) -> None:
        """Takes in a block of distances [R, C].

        Args:
            squares: of the rows from ``row`` on to the columns from ``column`` on.
            row, column: of the block's first entry.
            turned: the block is that of the columns to the rows (distances are symmetric).
        """
        first, last = (column, row) if turned else (row, column)
        length = squares.shape[1 if turned else 0]
        worst = self.values[first : first + length, -1]
        # After the first block hardly any distance is among the nearest: comparing all is cheaper than selecting.
        better = below(squares, worst[None] if turned else worst[:, None])
        if int(better.count_nonzero()) > squares.numel() // FEW:
            whole = (squares.T if turned else squares).contiguous()
            nearest = whole.topk(min(self.values.shape[1], whole.shape[1]), dim=1, largest=False, sorted=False)
            rows = torch.arange(first, first + length, device=squares.device)
            self._merge(rows, nearest.values, nearest.indices + last)
            return
        i, j = true_positions(better)
        values = squares[i, j]
        if turned:
            i, j = j, i
        self._merge_pairs(i + first, j + last, values)

    def _merge_pairs(self, i: Tensor, j: Tensor, values: Tensor) -> None:
        """Takes in single distances of rows ``i`` to columns ``j``, in any order."""
        order = values.argsort()
        order = order[i[order].argsort(stable=True)]  # by row, and by distance within a row
        touched, counts = i[order].unique_consecutive(return_counts=True)
        line = torch.arange(len(touched), device=i.device).repeat_interleave(counts)
        rank = torch.arange(len(order), device=i.device) - (counts.cumsum(0) - counts)[line]
        now = rank < self.values.shape[1]  # of the others, so many of their row are nearer
        line, rank, order = line[now], rank[now], order[now]
        table = torch.full((len(touched), self.values.shape[1]), math.inf, device=i.device)
        columns = torch.zeros_like(table, dtype=torch.int64)
        table[line, rank] = values[order]
        columns[line, rank] = j[order]
        self._merge(touched, table, columns)

    def _merge(self, rows: Tensor, values: Tensor, columns: Tensor) -> None:
        """Merges distances [R, C] of ``rows`` [R] to ``columns`` [R, C] into the nearest so far."""
        merged = torch.cat([self.values[rows], values], dim=1)
        chosen = merged.topk(self.values.shape[1], dim=1, largest=False, sorted=True)
        self.values[rows] = chosen.values
        self.columns[rows] = torch.cat([self.columns[rows], columns], dim=1).gather(1, chosen.indices)


def below(values: Tensor, bounds: Tensor) -> Tensor:
    """``values < bounds`` with broadcasting, float32; on the CPU by NumPy, which is several times faster at it."""
    if values.device.type != "cpu":
        return values < bounds
    return torch.from_numpy(np.less(values.numpy(), bounds.numpy()))


def true_positions(flags: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of what is true in a matrix, row by row; on the CPU by NumPy, for the same reason."""
    if flags.device.type != "cpu":
        i, j = flags.nonzero(as_tuple=True)
        return i, j
    flat = torch.from_numpy(np.flatnonzero(flags.numpy()))
    return flat // flags.shape[1], flat % flags.shape[1]
