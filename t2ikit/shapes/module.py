"""The data module of the embedded data set, which it builds where it does not exist yet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from t2ikit.data.datamodule import DataModule


class ShapesData(DataModule):
    """The embedded data set: rendered scenes of coloured shapes, built at the first use and kept.

    Args:
        size: height and width of the images, at least 16.
        difficulty: "simple" (one plain object) or "full".
        count: training images.
        val_count: validation images.
        captions: "long" or "aio" (an image of <class>).
        settings: CutMix settings that are built beside the images.
        scene_seed: seed of the scenes.
        root: where the data is kept; by default in the cache folder of the user, by its options.
        batch_size: samples of one optimizer step, over all devices and accumulated batches.
        num_workers: reading processes of each device; 0 reads in the training process.
        options: the other options of :class:`DataModule`; ``--help`` shows them.
    """

    def __init__(
        self,
        size: int = 16,
        difficulty: Literal["simple", "full"] = "simple",
        count: int = 20_000,
        val_count: int = 1_000,
        captions: Literal["long", "aio"] = "long",
        settings: tuple[str, ...] = ("cmall",),
        scene_seed: int = 0,
        root: str | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        **options: Any,
    ) -> None:
        for option, value, choices in (
            ("difficulty", difficulty, ("simple", "full")),
            ("captions", captions, ("long", "aio")),
        ):
            if value not in choices:
                raise ValueError(f'data.{option} must be "{choices[0]}" or "{choices[1]}", not "{value}"')
        if size < 16:
            raise ValueError(f"data.size must be at least 16, not {size}")
        if root is None:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
            parts = [str(size), difficulty, captions, str(count), str(val_count), *settings, str(scene_seed)]
            root = str(cache / "t2ikit" / "-".join(["shapes", *parts]))
        super().__init__(root, batch_size, num_workers, **options)
        self.size = size
        self.difficulty = difficulty
        self.count = count
        self.val_count = val_count
        self.captions = captions
        self.settings = tuple(settings)
        self.scene_seed = scene_seed

    def find_data(self) -> None:
        """Nothing to find: what is not there is rendered."""

    def prepare_data(self) -> None:
        """Renders, captions and encodes the data where it does not exist yet."""
        # Imported here: the renderer and the small text encoder are not needed to stream prepared data.
        from t2ikit.shapes.dataset import build_shapes

        build_shapes(
            self.root,
            self.size,
            self.difficulty,
            self.count,
            self.val_count,
            self.captions,
            self.settings,
            self.scene_seed,
        )
