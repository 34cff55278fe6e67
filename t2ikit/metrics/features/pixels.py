"""The pixel pipelines of the published scores: what exactly a feature network is shown.

Every pipeline takes one image [3, H, W] uint8 and gives float32 [3, h, w], the network's input. They differ in the
filter, in whether it antialiases, in rounding to whole grey levels in between, in the crop and in the range; each of
these moves a score, so a pipeline's name is part of every fingerprint.

=========================  =================================================================================
inception_clean            clean-fid ``clean``: PIL bicubic in float to 299 x 299, clipped; (x - 128) / 128
inception_legacy_pytorch   clean-fid ``legacy_pytorch``: bilinear to 299 x 299, no antialias; 2 x / 255 - 1
inception_torch_fidelity   torch-fidelity: TensorFlow 1 bilinear (source = i in / out) to 299; (x - 128) / 128
inception_torchmetrics     torchmetrics' default: bilinear with antialias to 299 x 299; (x - 128) / 128
dinov2                     dgm-eval: PIL bicubic, squashed to 224 x 224; ImageNet mean and deviation
cmmd_336, cmmd_224         CMMD: centre crop to the short side, PIL bicubic to 336 (224); CLIP mean and deviation
clip_224                   the CLIP processor of transformers (PIL): short side to 224, centre crop. CLIPScore and
                           PickScore
open_clip_224              open_clip and OpenAI: the same with torchvision's crop, which rounds an odd margin to the
                           even side. GenEval's colours, LAION aesthetic and ImageReward
hpsv2                      HPSv2: to [0, 1] first, then short side to 224 by bicubic on floats, centre crop
hpsv2_no_antialias         the same as torchvision before 0.17 did it by default
jina_clip_512              jina-clip-v2: short side to 512 by PIL bicubic, torchvision's crop, CLIP mean and deviation
=========================  =================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

Pipeline = Callable[[Tensor], Tensor]
Crop = Callable[[int, int], int]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
INCEPTION_SIZE = 299


def preprocess(name: str, image_uint8: Tensor | NDArray[np.uint8] | Image.Image) -> Tensor:
    """One image through a named pipeline (see the head of this file).

    Args:
        name: a key of ``PIPELINES``.
        image_uint8: [3, H, W] (or [H, W, 3], or grey [H, W], [1, H, W]) uint8, or a PIL image. Grey is tiled.

    Returns:
        [3, h, w] float32 on the CPU, in the range of the network.

    Raises:
        ValueError: unknown name, or an image of another type or shape.
    """
    if name not in PIPELINES:
        raise ValueError(f"unknown pixel pipeline {name!r}; there are {', '.join(PIPELINES)}")
    return PIPELINES[name](_planes(image_uint8))


def _planes(image: Tensor | NDArray[np.uint8] | Image.Image) -> Tensor:
    """The image as [3, H, W] uint8."""
    if isinstance(image, Image.Image):
        image = np.array(image.convert("RGB"))
    planes = torch.as_tensor(image).detach().cpu()
    shape = tuple(planes.shape)
    if planes.dtype != torch.uint8:
        raise ValueError(f"a pixel pipeline needs a uint8 image; got {planes.dtype}")
    if planes.dim() == 2:
        planes = planes[None]
    elif planes.dim() == 3 and shape[0] not in (1, 3) and shape[2] in (1, 3):
        planes = planes.permute(2, 0, 1)
    if planes.dim() != 3 or planes.shape[0] not in (1, 3) or 0 in shape:
        raise ValueError(f"a pixel pipeline needs an image [3, H, W]; got {shape}")
    return planes.expand(3, -1, -1).contiguous()


def _picture(planes: Tensor) -> Image.Image:
    return Image.fromarray(planes.permute(1, 2, 0).contiguous().numpy())


def _pixels(picture: Image.Image) -> Tensor:
    """[3, H, W] uint8 of a PIL image."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _normalised(unit: Tensor, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """(x - mean) / deviation of [3, H, W] in [0, 1]."""
    mean, deviation = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in statistics)
    return (unit - mean) / deviation


def bilinear_tensorflow1(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize as TensorFlow 1 did it: output i reads the source at i * in / out, with no half-pixel shift.

    Args:
        images: [..., H, W] float32.
        size: (h, w).

    Returns:
        [..., h, w] float32.
    """
    weights, neighbours = [], []
    for length, wanted in zip(images.shape[-2:], size, strict=True):
        source = torch.arange(wanted, dtype=torch.float32) * torch.tensor(length / wanted, dtype=torch.float32)
        low = source.long().clamp(max=length - 1)
        neighbours.append((low.to(images.device), (low + 1).clamp(max=length - 1).to(images.device)))
        weights.append((source - low).to(images.device))
    (top, bottom), (left, right) = neighbours
    rows = []
    for row in (top, bottom):
        line = images[..., row, :]
        rows.append(line[..., left] + (line[..., right] - line[..., left]) * weights[1])
    return rows[0] + (rows[1] - rows[0]) * weights[0][:, None]


def _inception_clean(planes: Tensor) -> Tensor:
    size = (INCEPTION_SIZE, INCEPTION_SIZE)
    resized = []
    for plane in planes.to(torch.float32).numpy():
        resized.append(np.array(Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC)))
    return (torch.from_numpy(np.stack(resized)).clamp(0, 255) - 128) / 128


def _inception_legacy_pytorch(planes: Tensor) -> Tensor:
    size = (INCEPTION_SIZE, INCEPTION_SIZE)
    resized = interpolate(planes[None].to(torch.float32), size=size, mode="bilinear", align_corners=False)[0]
    return resized.clamp(0, 255) / 255 * 2 - 1


def _inception_torch_fidelity(planes: Tensor) -> Tensor:
    return (bilinear_tensorflow1(planes.to(torch.float32), (INCEPTION_SIZE, INCEPTION_SIZE)) - 128) / 128


def _inception_torchmetrics(planes: Tensor) -> Tensor:
    size = (INCEPTION_SIZE, INCEPTION_SIZE)
    pixels = planes[None].to(torch.float32)
    return (interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)[0] - 128) / 128


def _dinov2(planes: Tensor) -> Tensor:
    resized = _picture(planes).resize((224, 224), Image.Resampling.BICUBIC)
    return _normalised(_pixels(resized).to(torch.float32) / 255, IMAGENET)


def _cmmd(size: int, planes: Tensor) -> Tensor:
    height, width = planes.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cropped = _picture(planes[:, top : top + side, left : left + side])
    resized = cropped.resize((size, size), Image.Resampling.BICUBIC)
    return _normalised(_pixels(resized).to(torch.float32) / 255, CLIP)


def short_side(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) after the short side is resized to ``size``; the long one is cut to a whole pixel."""
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def _floor_margin(length: int, size: int) -> int:
    return (length - size) // 2


def _even_margin(length: int, size: int) -> int:
    return int(round((length - size) / 2.0))


def _centre(pixels: Tensor, size: int, margin: Crop) -> Tensor:
    top, left = (margin(length, size) for length in pixels.shape[-2:])
    return pixels[..., top : top + size, left : left + size]


def _clip(size: int, margin: Crop, planes: Tensor) -> Tensor:
    height, width = short_side(planes.shape[1], planes.shape[2], size)
    picture = _picture(planes)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return _normalised(_centre(_pixels(picture), size, margin).to(torch.float32) / 255, CLIP)


def _hpsv2(antialias: bool, planes: Tensor) -> Tensor:
    unit = planes.to(torch.float32) / 255
    size = short_side(planes.shape[1], planes.shape[2], 224)
    if tuple(unit.shape[1:]) != size:
        unit = interpolate(unit[None], size=size, mode="bicubic", align_corners=False, antialias=antialias)[0]
    return _normalised(_centre(unit, 224, _even_margin), CLIP)


PIPELINES: dict[str, Pipeline] = {
    "inception_clean": _inception_clean,
    "inception_legacy_pytorch": _inception_legacy_pytorch,
    "inception_torch_fidelity": _inception_torch_fidelity,
    "inception_torchmetrics": _inception_torchmetrics,
    "dinov2": _dinov2,
    "cmmd_336": partial(_cmmd, 336),
    "cmmd_224": partial(_cmmd, 224),
    "clip_224": partial(_clip, 224, _floor_margin),
    "open_clip_224": partial(_clip, 224, _even_margin),
    "hpsv2": partial(_hpsv2, True),
    "hpsv2_no_antialias": partial(_hpsv2, False),
    "jina_clip_512": partial(_clip, 512, _even_margin),
}


def preprocess_batch(name: str, images: Tensor) -> Tensor:
    """Images [B, 3, H, W] uint8 through a pipeline, [B, 3, h, w] float32 on the device of the images."""
    if len(images) == 0:
        raise ValueError("a pixel pipeline needs at least one image")
    return torch.stack([preprocess(name, image) for image in images.cpu()]).to(images.device)


def describe_pipeline(name: str) -> dict[str, Any]:
    """The fingerprint entry of a pipeline; ValueError for an unknown name."""
    if name not in PIPELINES:
        raise ValueError(f"unknown pixel pipeline {name!r}; there are {', '.join(PIPELINES)}")
    return {"resize": name}
