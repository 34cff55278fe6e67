"""The pixel pipelines against the programs they follow, and against hand-made values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from t2ikit.metrics.features.pixels import (
    CLIP,
    IMAGENET,
    PIPELINES,
    bilinear_tensorflow1,
    preprocess,
    preprocess_batch,
)

SIZES = [(97, 130), (301, 200), (225, 224), (224, 227)]


def picture(size: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] uint8, smooth with noise."""
    random = np.random.default_rng(size[0])
    coarse = Image.fromarray(random.integers(0, 256, size=(5, 7, 3), dtype=np.uint8))
    smooth = np.array(coarse.resize(size[::-1], Image.Resampling.BICUBIC), dtype=np.int64)
    return np.clip(smooth + random.integers(-40, 40, size=smooth.shape), 0, 255).astype(np.uint8)


def planes(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["clean", "legacy_pytorch"])
def test_inception_equals_clean_fid(mode: str, size: tuple[int, int]) -> None:
    resize = pytest.importorskip("cleanfid.resize")
    pixels = picture(size)
    resized = torch.from_numpy(np.ascontiguousarray(resize.build_resizer(mode)(pixels))).permute(2, 0, 1)
    expected = (resized - 128) / 128 if mode == "clean" else resized / 255 * 2 - 1
    torch.testing.assert_close(preprocess(f"inception_{mode}", planes(pixels)), expected, rtol=1e-6, atol=1e-6)


def test_tensorflow_bilinear_reads_at_multiples_of_the_scale() -> None:
    ramp = torch.arange(8.0).repeat(4, 1)
    columns = bilinear_tensorflow1(ramp, (4, 5))[0]
    torch.testing.assert_close(columns, torch.tensor([0.0, 1.6, 3.2, 4.8, 6.4]))
    torch.testing.assert_close(bilinear_tensorflow1(ramp[:, :2], (4, 4))[0], torch.tensor([0.0, 0.5, 1.0, 1.0]))
    torch.testing.assert_close(bilinear_tensorflow1(ramp.T, (5, 4))[:, 0], columns)
    assert torch.equal(bilinear_tensorflow1(ramp, (4, 8)), ramp)


@pytest.mark.parametrize("size", SIZES)
def test_torchvision_pipelines(size: tuple[int, int]) -> None:
    pixels = picture(size)
    image = Image.fromarray(pixels)
    bicubic = transforms.InterpolationMode.BICUBIC
    to_clip = [transforms.ToTensor(), transforms.Normalize(*CLIP)]
    references = {
        "dinov2": [transforms.Resize((224, 224), bicubic), transforms.ToTensor(), transforms.Normalize(*IMAGENET)],
        "open_clip_224": [transforms.Resize(224, bicubic), transforms.CenterCrop(224), *to_clip],
        "jina_clip_512": [transforms.Resize(512, bicubic), transforms.CenterCrop(512), *to_clip],
        "hpsv2": [to_clip[0], transforms.Resize(224, bicubic), transforms.CenterCrop(224), to_clip[1]],
        "hpsv2_no_antialias": [
            to_clip[0],
            transforms.Resize(224, bicubic, antialias=False),
            transforms.CenterCrop(224),
            to_clip[1],
        ],
    }
    for name, steps in references.items():
        expected = transforms.Compose(steps)(image)
        torch.testing.assert_close(preprocess(name, planes(pixels)), expected, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("size", SIZES)
def test_clip_equals_the_pil_processor_of_transformers(size: tuple[int, int]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pixels = picture(size)
    expected = CLIPImageProcessorPil()(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(preprocess("clip_224", planes(pixels)), expected, rtol=1e-5, atol=1e-5)


def test_cmmd_crops_before_it_resizes() -> None:
    pixels = picture((50, 81))
    cropped = Image.fromarray(pixels[:, 15:65]).resize((336, 336), Image.Resampling.BICUBIC)
    expected = transforms.Normalize(*CLIP)(transforms.ToTensor()(cropped))
    torch.testing.assert_close(preprocess("cmmd_336", planes(pixels)), expected)
    assert preprocess("cmmd_224", planes(pixels)).shape == (3, 224, 224)


def test_odd_margins_tell_the_two_crops_apart() -> None:
    wide = picture((224, 227))
    first, second = (preprocess(name, planes(wide)) for name in ("clip_224", "open_clip_224"))
    assert torch.equal(first[:, :, 1:], second[:, :, :-1])
    assert not torch.equal(first, second)


def test_layouts_are_the_same_image() -> None:
    pixels = picture((40, 60))
    for name in PIPELINES:
        expected = preprocess(name, planes(pixels))
        assert expected.dtype == torch.float32
        assert torch.equal(preprocess(name, pixels), expected)
        assert torch.equal(preprocess(name, Image.fromarray(pixels)), expected)
    grey = preprocess("dinov2", pixels[:, :, 0])
    assert torch.equal(grey, preprocess("dinov2", np.repeat(pixels[:, :, :1], 3, axis=2)))
    batch = preprocess_batch("cmmd_224", torch.stack([planes(pixels)] * 2))
    assert torch.equal(batch[1], preprocess("cmmd_224", pixels))


def test_wrong_images_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown pixel pipeline 'clean'; there are inception_clean"):
        preprocess("clean", picture((20, 20)))
    with pytest.raises(ValueError, match="uint8"):
        preprocess("dinov2", torch.zeros(3, 20, 20))
    with pytest.raises(ValueError, match=r"\[3, H, W\]"):
        preprocess("dinov2", torch.zeros(4, 20, 20, dtype=torch.uint8))
