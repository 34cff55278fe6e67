"""Weights of one denoiser for another: equal, resized, or a part of them.

Shapes: a position table is [N, D] over a grid of h rows and w columns, row by row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn


def resized_positions(table: Tensor, grid: tuple[int, int], source: tuple[int, int] | None = None) -> Tensor:
    """A position table for another grid, by bicubic interpolation.

    Args:
        table: [N, D].
        grid: (h, w) of the result.
        source: (h, w) of ``table``; None = unknown, then it is taken for a grid of the same aspect.

    Returns:
        [h w, D], in the dtype of ``table``.

    Raises:
        ValueError: N is not that of ``source``, or no grid of the aspect of ``grid``.
    """
    if source is not None:
        height, width = source
        if height * width != table.shape[0]:
            raise ValueError(f"{table.shape[0]} positions are no grid of {height} x {width}")
    else:
        height = round((table.shape[0] * grid[0] / grid[1]) ** 0.5)
        width = table.shape[0] // max(height, 1)
        if height * width != table.shape[0] or height * grid[1] != width * grid[0]:
            raise ValueError(f"{table.shape[0]} positions are no grid of the aspect of {grid[0]} x {grid[1]}")
    image = table.float().T.reshape(1, -1, height, width)
    image = nn.functional.interpolate(image, size=grid, mode="bicubic", align_corners=False)
    return image[0].flatten(1).T.to(table.dtype)


def chosen(
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    fit: str,
    prefixes: Sequence[str],
    positions: Sequence[str],
    grid: tuple[int, int] | None,
    source: tuple[int, int] | None = None,
) -> tuple[dict[str, Tensor], str]:
    """What a denoiser takes of given weights; see :meth:`Denoiser.adopt`.

    Args:
        own: the denoiser's weights by name.
        given: those that are offered.
        fit: strict, resize or grow.
        prefixes: of the names that "grow" takes.
        positions: names of its learned position tables.
        grid: (h, w) of the denoiser's positions.
        source: (h, w) of the given ones; None = unknown.

    Returns:
        The weights to load, and in a few words what is resized or stays fresh.

    Raises:
        ValueError: names every weight that does not match.
    """
    wanted = {name: value for name, value in own.items() if fit != "grow" or name.startswith(tuple(prefixes))}
    missing = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in own] if fit != "grow" else []
    taken, misshapen, resized = {}, [], []
    for name, value in wanted.items():
        if name not in given:
            continue
        offered = given[name]
        shapes = list(offered.shape), list(value.shape)
        # As many positions of another grid, such as 16 x 4 for 8 x 8, would be taken in another order.
        turned = name in positions and source is not None and grid is not None and source != grid
        if turned and source is not None and grid is not None and offered.shape == value.shape:
            shapes = list(source), list(grid)
        if offered.shape == value.shape and not turned:
            taken[name] = offered
        elif fit == "resize" and name in positions and grid is not None:
            taken[name] = resized_positions(offered, grid, source)
            resized.append(f"{name} {shapes[0]} -> {shapes[1]}")
        else:
            misshapen.append(f"{name}: {shapes[0]} given, {shapes[1]} wanted")
    faults = listed_faults(missing, unknown, misshapen)
    if faults:
        raise ValueError(f"the weights do not fit with fit '{fit}': {faults}")
    fresh = len(own) - len(taken)
    said = [
        *(f"resized {entry}" for entry in resized),
        *([f"{fresh} of {len(own)} tensors stay fresh"] if fresh else []),
    ]
    return taken, "; ".join(said)


def listed_faults(missing: list[str], unknown: list[str], misshapen: list[str]) -> str:
    """What of given weights does not match, in words; empty if everything does."""
    faults = [("missing", missing), ("unknown", unknown), ("of another shape", misshapen)]
    return "; ".join(f"{len(names)} {fault}{some_of(names)}" for fault, names in faults if names)


def some_of(names: list[str], count: int = 4) -> str:
    """Up to ``count`` of the names in brackets, or nothing."""
    if not names:
        return ""
    return f" ({', '.join(names[:count])}{', ...' if len(names) > count else ''})"
