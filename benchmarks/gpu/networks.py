"""Images a second of the metrics' networks with random weights, pixel pipelines included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from benchmarks.base import Measurement, Settings
from benchmarks.gpu.timing import seconds
from t2ikit.metrics.features.inception import build_inception
from t2ikit.metrics.features.pixels import preprocess_batch
from t2ikit.metrics.geneval.detector import detector_input


def rates(settings: Settings) -> Iterator[Measurement]:
    """Each network on images of 256 x 256 in fp32, as its metric runs it; GenEval's detector one image at a time."""
    small = settings.small
    builds: dict[str, tuple[str, Callable[[bool], nn.Module]]] = {
        "Inception v3": ("inception_torch_fidelity", _inception),
        "DINOv2 L": ("dinov2", _dinov2),
        "CLIP ViT-L/14 at 336": ("cmmd_336", _clip),
    }
    rows = 2 if small else 64
    images = torch.randint(0, 256, (rows, 3, 256, 256), dtype=torch.uint8, device=settings.device)
    for name, (pipeline, build) in builds.items():
        network = build(small).eval().to(settings.device)
        pixels = preprocess_batch(pipeline, images)
        repeats = 1 if small else 5
        with torch.no_grad():
            whole = seconds(lambda n=network, p=pipeline: n(preprocess_batch(p, images)), settings.until, repeats, 1)  # type: ignore[misc]
            alone = seconds(lambda n=network, x=pixels: n(x), settings.until, repeats, 1)  # type: ignore[misc]
        yield Measurement(f"{name}, B={rows}", rows / whole, "images/s", "the network alone", rows / alone)
        if settings.left < 3:
            return
    detector = _mask2former(small).eval().to(settings.device)

    @torch.no_grad()
    def detect() -> Any:
        return detector(pixel_values=detector_input(images[0])[0][None])

    yield Measurement("Mask2Former Swin-S, B=1", 1 / seconds(detect, settings.until, 1 if small else 5, 1), "images/s")


def _inception(small: bool) -> nn.Module:
    return build_inception()


def _dinov2(small: bool) -> nn.Module:
    from transformers import Dinov2Config, Dinov2Model

    width, layers, heads = (32, 1, 2) if small else (1024, 24, 16)
    config = Dinov2Config(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, image_size=518, patch_size=14
    )
    return Dinov2Model(config)


def _clip(small: bool) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    width, layers, heads = (32, 1, 2) if small else (1024, 24, 16)
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    return CLIPVisionModelWithProjection(config)


def _mask2former(small: bool) -> nn.Module:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    sizes: dict[str, Any] = {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]}
    if small:
        sizes = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
    swin = SwinConfig(**sizes, window_size=7, out_features=["stage1", "stage2", "stage3", "stage4"])
    layers = {"encoder_layers": 1, "decoder_layers": 2} if small else {}
    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=swin, num_labels=80, **layers))
