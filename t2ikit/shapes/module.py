"""The data module of the embedded data set, which it builds where it does not exist yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from t2ikit.data.datamodule import DataModule
from t2ikit.files import require_folder
from t2ikit.pretrained import cache_folder, find_pretrained
from t2ikit.records.buckets import bucket_shapes
from t2ikit.shapes.prompts import Difficulty

Captions = Literal["long", "aio"]


@dataclass(eq=False)
class ShapesData(DataModule):
    """The embedded data set: rendered scenes of coloured shapes, built at the first use and kept.

    Attributes:
        size: height and width of the images, at least 16.
        difficulty: "simple" (one plain object), "imagenet" (one, in a minority of the images a second one; some
            pairs of classes never occur) or "full".
        count: training images.
        val_count: validation images.
        captions: "long" or "aio" (an image of <class>).
        settings: CutMix settings that are built beside the images.
        scene_seed: seed of the scenes.
        bucket_sizes: HEIGHTxWIDTH of aspect buckets, in place of ``size``, such as ``[64x64, 48x80, 80x48]``: the
            scenes are dealt out evenly over them, and a step takes one of them. Pixels only, without CutMix settings.
        autoencoder: encode the images into latents, by "embedded:shapes-full" or "embedded:shapes-simple", a folder in
            the format of diffusers or a repository of the Hub; the experiment then needs LatentSpace. By default they
            stay pixels.
        word_order: a small T5 whose heads look at neighbouring words makes the text states, so that they say which
            adjective belongs to which noun, as those of trained encoders do; with random weights alone they do not
            (docs/shapes.md). Only with an autoencoder.
        root: where the data is kept; by default below ``$T2IKIT_CACHE`` (or ``~/.cache/t2ikit``), by its options.
        batch_size: samples of one optimizer step, over all devices and accumulated batches.
        num_workers: reading processes of each device; 0 reads in the training process.
    """

    size_options: ClassVar[Mapping[str, str]] = {"train": "data.count", "val": "data.val_count"}

    root: str | None = None  # type: ignore[assignment]  # filled in below
    batch_size: int = 64
    num_workers: int = 0
    size: int = 16
    difficulty: Difficulty = "simple"
    count: int = 20_000
    val_count: int = 1_000
    captions: Captions = "long"
    settings: tuple[str, ...] = ("cmall",)
    scene_seed: int = 0
    autoencoder: str | None = None
    bucket_sizes: tuple[str, ...] = ()
    word_order: bool = False

    def __post_init__(self) -> None:
        for option, choices in (("difficulty", get_args(Difficulty)), ("captions", get_args(Captions))):
            if getattr(self, option) not in choices:
                names = " or ".join(f'"{choice}"' for choice in choices)
                raise ValueError(f'data.{option} must be {names}, not "{getattr(self, option)}"')
        if self.size < 16:
            raise ValueError(f"data.size must be at least 16, not {self.size}")
        self.settings, self.bucket_sizes = tuple(self.settings), tuple(self.bucket_sizes)
        if self.bucket_sizes:
            if self.settings or self.autoencoder is not None:
                raise ValueError(
                    "data.bucket_sizes are pixels without CutMix, whose settings are defined on squares: set "
                    "--data.settings [], --data.autoencoder null and --data.word_order false"
                )
            self.buckets = list(bucket_shapes(self.bucket_sizes, "data.bucket_sizes"))
        if self.word_order and self.autoencoder is None:
            raise ValueError(
                "data.word_order needs latents: set data.autoencoder, such as embedded:shapes-full, or leave it out "
                "(--data.word_order false)"
            )
        if self.root is None:
            options = [self.size, self.difficulty, self.captions, self.count, self.val_count, *self.settings]
            name = "-".join(["shapes", *map(str, options), *self.bucket_sizes, str(self.scene_seed)])
            if self.autoencoder is not None:
                name += "-" + find_pretrained(self.autoencoder, None, "data.autoencoder").reference.sha256[:12]
            if self.word_order:
                name += "-order"
            self.root = str(cache_folder() / name)
        super().__post_init__()

    def find_data(self) -> None:
        """What is not there is rendered: refuses a folder that cannot take it.

        Raises:
            ValueError: names ``data.root``.
        """
        if isinstance(self.folder, Path) and not self.folder.is_dir():
            require_folder(self.folder, "data.root (by default below $T2IKIT_CACHE or ~/.cache/t2ikit)")

    def prepare_data(self) -> None:
        """Renders, captions and encodes the data where it does not exist yet."""
        # Imported here: the renderer and the small text encoder are not needed to stream prepared data.
        from t2ikit.encoders.small_t5 import build_small_t5
        from t2ikit.shapes.captions import vocabulary
        from t2ikit.shapes.dataset import ENCODER_FOLDER, build_shapes
        from t2ikit.shapes.latents import IMAGES, encode_shapes, encoding_beside

        self.find_data()
        root = Path(self.folder)
        if self.bucket_sizes:
            from t2ikit.shapes.buckets import build_buckets

            shapes = bucket_shapes(self.bucket_sizes)
            facts = (self.difficulty, self.count, self.val_count, self.captions, self.scene_seed)
            build_buckets(root, shapes, *facts)
            return
        rendered = root if self.autoencoder is None else root / IMAGES

        def render(settings: Sequence[str]) -> None:
            sizes = (self.size, self.difficulty, self.count, self.val_count)
            build_shapes(rendered, *sizes, self.captions, settings, self.scene_seed)

        if self.autoencoder is None:
            render(self.settings)
            return
        if self.word_order:
            build_small_t5(root / ENCODER_FOLDER, vocabulary(self.difficulty), overwrite=True, word_order=True)
        render(())
        # CutMix images are drawn on one core: latents of the images that they are made of are encoded on the others.
        with encoding_beside(root, ["val", "train"], self.autoencoder, self.word_order):
            render(self.settings)
        every = ["val", "train", *(f"train_{setting}" for setting in self.settings)]
        encode_shapes(root, every, self.autoencoder, self.word_order)
