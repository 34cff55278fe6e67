"""GenEval's detector: Mask2Former with the official post-processing, and CLIP for the colours.

Shape legend::

    Q  queries    C  classes (without background)    K  detections    h, w  mask logits    H, W  image

The official scorer runs mmdet's ``mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco``. transformers' Swin-S COCO model has
the same architecture and other weights, so a score made with it says so in its fingerprint. Its own post-processing
differs, too, and is not used: here the 100 best of all Q x C (query, class) pairs are kept, a score is class
probability times the mean probability of its mask, and a box ends one pixel after its mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize, pad

from t2ikit.metrics.features.clip import CLIPEncoder
from t2ikit.metrics.features.features import NetworkHolder
from t2ikit.metrics.geneval.rules import COLORS
from t2ikit.pretrained import load_pretrained

MAX_DETECTIONS = 100
LONG_SIDE, SHORT_SIDE, DIVISOR = 1333, 800, 32
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
GREY = 153  # "#999", what is painted over the background of an object before its colour is judged
COLOR_TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")

# fmt: off
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
"""GenEval's names of the 80 COCO classes, in COCO's order."""


@dataclass(frozen=True)
class Instances:
    """Detections of one image, best pair first.

    Attributes:
        labels: [K] int64.
        scores: [K] float32.
        boxes: [K, 4] float32, x0 y0 x1 y1 in pixels of the image, x1 and y1 one past the mask; zeros for no mask.
        masks: [K, H, W] bool.
    """

    labels: Tensor
    scores: Tensor
    boxes: Tensor
    masks: Tensor


def postprocess(
    class_logits: Tensor,
    mask_logits: Tensor,
    padded_size: tuple[int, int],
    resized_size: tuple[int, int],
    image_size: tuple[int, int],
    max_detections: int = MAX_DETECTIONS,
) -> Instances:
    """Detections from the network's output, as mmdet 2.27 makes them.

    Args:
        class_logits: [Q, C + 1], the background last.
        mask_logits: [Q, h, w].
        padded_size: (height, width) of the network's input with its padding.
        resized_size: (height, width) of the input without padding.
        image_size: (H, W) of the image.
        max_detections: (query, class) pairs that are kept.
    """
    classes = class_logits.shape[1] - 1
    probabilities = class_logits.float().softmax(dim=1)[:, :classes].flatten()
    best = probabilities.topk(min(max_detections, len(probabilities)))
    queries, labels = best.indices // classes, best.indices % classes
    used, row = queries.unique(return_inverse=True)
    masks = torch.empty(len(used), *image_size, dtype=torch.bool, device=mask_logits.device)
    certainty = torch.empty(len(used), device=mask_logits.device)
    for index, query in enumerate(used.tolist()):
        logits = mask_logits[query][None, None].float()
        logits = interpolate(logits, size=padded_size, mode="bilinear", align_corners=False)
        logits = logits[..., : resized_size[0], : resized_size[1]]
        logits = interpolate(logits, size=image_size, mode="bilinear", align_corners=False)[0, 0]
        masks[index] = logits > 0
        inside = masks[index].float()
        certainty[index] = (logits.sigmoid() * inside).sum() / (inside.sum() + 1e-6)
    return Instances(labels, best.values * certainty[row], mask_boxes(masks)[row], masks[row])


def mask_boxes(masks: Tensor) -> Tensor:
    """Tight boxes [K, 4] float32 of masks [K, H, W], the far side one pixel on; zeros for an empty mask."""
    columns, rows = masks.any(dim=1), masks.any(dim=2)
    boxes = torch.zeros(len(masks), 4, device=masks.device)
    for index in rows.any(dim=1).nonzero()[:, 0].tolist():
        x, y = columns[index].nonzero()[:, 0], rows[index].nonzero()[:, 0]
        boxes[index] = torch.stack([x[0], y[0], x[-1] + 1, y[-1] + 1]).float()
    return boxes


def detector_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) within 1333 x 800, whichever way up, with the shape kept."""
    factor = min(LONG_SIDE / max(height, width), SHORT_SIDE / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def detector_input(image: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The network's input [3, h, w] float32, padded to multiples of 32, and its (height, width) without padding.

    Args:
        image: [3, H, W] uint8. It is resized bilinearly without antialias and rounded to grey levels, as OpenCV does
            up to one level of rounding.
    """
    size = detector_size(*image.shape[1:])
    resized = interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False)[0].round()
    mean, deviation = (torch.tensor(values, device=image.device)[:, None, None] for values in (MEAN, DEVIATION))
    bottom, right = (-side % DIVISOR for side in size)
    return pad((resized - mean) / deviation, (0, right, 0, bottom)), size


def color_crop(image: Tensor, box: Sequence[float] | Tensor, mask: Tensor | None = None) -> Tensor:
    """What the colour of one object is judged on.

    Args:
        image: [3, H, W] uint8.
        box: x0 y0 x1 y1, rounded half to even; what it covers outside of the image is black.
        mask: [H, W] bool; elsewhere the image is painted grey (#999) before it is cropped.

    Returns:
        [3, h, w] uint8.

    Raises:
        ValueError: a mask of another size than the image, or an empty box.
    """
    if mask is not None:
        if mask.shape != image.shape[1:]:
            raise ValueError(f"mask {tuple(mask.shape)} and image {tuple(image.shape[1:])} differ in size")
        image = torch.where(mask, image, image.new_tensor(GREY))
    x0, y0, x1, y1 = (round(float(side)) for side in box[:4])
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"box {(x0, y0, x1, y1)} is empty")
    height, width = image.shape[1:]
    # Negative padding crops; what is outside the image becomes black.
    return pad(image, (-x0, x1 - width, -y0, y1 - height))


class ColorClassifier(NetworkHolder):
    """Which of the ten colours an object has, by CLIP: three prompts a colour, their embeddings averaged."""

    def __init__(self, model: str = "openai/clip-vit-large-patch14", revision: str | None = None) -> None:
        """Names the model; weights are loaded at the first use.

        Args:
            model: CLIP ViT-L/14 of OpenAI in transformers' format (QuickGELU): repository or local folder.
            revision: commit, branch or tag of the repository.
        """
        self.encoder = CLIPEncoder(model, revision, "open_clip_224", option="color.init_args.model")
        self._weights: dict[str, Tensor] = {}

    def __call__(self, crops: Sequence[Tensor], name: str) -> list[str]:
        """The colour of every crop [3, h, w] uint8 of objects of one class."""
        if not crops:
            return []
        weights = self._classifier(name, crops[0].device)
        embeddings = normalize(self.encoder.images(crops), dim=1)
        return [COLORS[index] for index in (embeddings @ weights.T).argmax(dim=1).tolist()]

    def _classifier(self, name: str, device: torch.device) -> Tensor:
        """[10, D] on the device, each colour's mean embedding over the templates, of length one."""
        if name not in self._weights:
            config: Any = self.encoder.network.config
            if config.vision_config.hidden_act != "quick_gelu":
                raise ValueError(f"{self.encoder.model} is no OpenAI CLIP: its activation must be quick_gelu")
            rows = []
            for color in COLORS:
                prompts = [template.format(color=color, name=name) for template in COLOR_TEMPLATES]
                rows.append(normalize(normalize(self.encoder.texts(prompts, device), dim=1).mean(dim=0), dim=0))
            self._weights[name] = torch.stack(rows)
        return self._weights[name].to(device)


class Mask2FormerDetector(NetworkHolder):
    """Detections for the metric: class, box, score and, for those that can be kept, the colour."""

    def __init__(
        self,
        model: str = "facebook/mask2former-swin-small-coco-instance",
        revision: str | None = None,
        color: ColorClassifier | None = None,
        threshold: float = 0.3,
    ) -> None:
        """Names the model; weights are loaded at the first use.

        Args:
            model: a Mask2Former of transformers with the 80 COCO classes in order: repository or local folder.
            revision: commit, branch or tag of the repository.
            color: judges colours; None takes OpenAI's CLIP ViT-L/14.
            threshold: detections at or below it are dropped, no rule of GenEval keeps them.
        """
        self.model = model
        self.revision = revision
        self.color = color or ColorClassifier()
        self.threshold = threshold
        self._loaded: tuple[Any, str] | None = None

    def _load(self) -> tuple[Any, str]:
        if self._loaded is None:
            from transformers import Mask2FormerForUniversalSegmentation

            network, folder = load_pretrained(
                Mask2FormerForUniversalSegmentation, self.model, self.revision, "detector.init_args.model"
            )
            if network.config.num_labels != len(CLASSES):
                raise ValueError(f"{self.model} has {network.config.num_labels} classes, GenEval needs COCO's 80")
            self._loaded = (network, folder.reference.sha256)
        return self._loaded

    @torch.no_grad()
    def instances(self, image: Tensor) -> Instances:
        """The 100 best pairs of an image [3, H, W] uint8."""
        network = self._load()[0].to(image.device)
        pixels, resized = detector_input(image)
        output = network(pixel_values=pixels[None])
        height, width = image.shape[1:]
        return postprocess(
            output.class_queries_logits[0],
            output.masks_queries_logits[0],
            (pixels.shape[1], pixels.shape[2]),
            resized,
            (height, width),
        )

    def __call__(self, image: Tensor) -> list[dict[str, Any]]:
        """Detections of an image [3, H, W] uint8, best first: {"class", "box", "score", "color"}."""
        seen = self.instances(image)
        rows = [i for i in seen.scores.argsort(descending=True).tolist() if float(seen.scores[i]) > self.threshold]
        colors: dict[int, str] = {}
        for label in {int(seen.labels[i]) for i in rows}:
            members = [i for i in rows if int(seen.labels[i]) == label]
            crops = [color_crop(image, seen.boxes[i], seen.masks[i]) for i in members]
            colors.update(zip(members, self.color(crops, CLASSES[label]), strict=True))
        return [
            {
                "class": CLASSES[int(seen.labels[i])],
                "box": seen.boxes[i].tolist(),
                "score": float(seen.scores[i]),
                "color": colors[i],
            }
            for i in rows
        ]

    def fingerprint(self) -> dict[str, Any]:
        """Both networks with the hashes of their weights."""
        color = self.color.encoder.fingerprint()
        described = {"features": f"mask2former:{self.model}", "features_sha256": self._load()[1], "color": color}
        return {**described, "resize": f"{LONG_SIDE}x{SHORT_SIDE} bilinear", "threshold": self.threshold}
