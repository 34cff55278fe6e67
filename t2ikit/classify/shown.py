"""A few pictures of each source as a view shows them, for a page (Figure 2 and Appendix B of the paper)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from t2ikit.classify.classes import ClassList, ImageClass
from t2ikit.classify.pictures import Pictures
from t2ikit.classify.views import View
from t2ikit.photos import compress

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHOWN = 8
"""Classes of which a picture is shown."""


def shown_classes(classes: ClassList, count: int = SHOWN) -> list[ImageClass]:
    """Classes evenly spaced through all of them."""
    step = max(1, len(classes) // count)
    return list(classes.classes[::step][:count])


def shown_pictures(pictures: Pictures, view: View, read: Callable[[Pictures, int], np.ndarray]) -> list[bytes | None]:
    """Pictures as the view prepares them, before normalisation, as PNG.

    Args:
        pictures: those that are shown.
        view: how; a filter's values outside [0, 1] are cut off here.
        read: reads a picture as the view takes it.
    """
    return [_png(view, read(pictures, index)) for index in range(len(pictures))]


def _png(view: View, picture: np.ndarray) -> bytes:
    image = view.prepare(picture)
    side = min(*image.shape[-2:], 192)
    if view.name == "texture":  # one of its patches, in the middle
        image = view.test(image, 0)[4] * torch.tensor(_STD)[:, None, None] + torch.tensor(_MEAN)[:, None, None]
    elif min(image.shape[-2:]) > side:
        image = torch.nn.functional.interpolate(image[None], size=(side, side), mode="bicubic", antialias=True)[0]
    return compress((image.clamp(0, 1) * 255).round().to(torch.uint8).numpy(), "png")
