"""The prompts of DPG-Bench, read from the official files; images go to grids as its own program reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from t2ikit.files import read_utf8
from t2ikit.metrics.base import samples_of
from t2ikit.metrics.questions.dpg_grids import ImagesOfGrids, read_grids, write_grids
from t2ikit.metrics.questions.metric import images_of_items
from t2ikit.pictures import Images
from t2ikit.prompts import BenchmarkPrompts, Prompt


@dataclass
class DPGPrompts(BenchmarkPrompts):
    """The 1,065 dense prompts of DPG-Bench (Hu et al. 2024); ``item_id`` is the name of a prompt's file.

    Attributes:
        path: folder of ``<item_id>.txt`` (``dpg_bench/prompts`` of github.com/TencentQQGYLab/ELLA).
        images_per_prompt: images of each, 1 to 4; 4, as a 2 x 2 grid, in the protocol.
        limit: only the first prompts, by name; None takes all.
    """

    images_per_prompt: int = 4
    name = "DPG-Bench"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images_per_prompt > 4:
            raise ValueError(
                f"DPGPrompts: images_per_prompt is at most 4, a grid holds no more; got {self.images_per_prompt}"
            )

    def prompts(self) -> list[Prompt]:
        """The prompts by the names of their files, each ``images_per_prompt`` times in a row."""
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder of DPG-Bench prompts {folder}: set the `path` of DPGPrompts")
        files = sorted(path for path in folder.glob("*.txt") if not path.name.startswith("."))
        if not files:
            raise FileNotFoundError(f"no <item_id>.txt in {folder}: set the `path` of DPGPrompts")
        prompts = []
        for file in files[: self.limit]:
            # The official scorer takes a name up to its first dot for the item.
            if "." in file.stem:
                raise ValueError(f"{file}: an item's name holds no dot; expected <item_id>.txt")
            text = " ".join(read_utf8(file).split())
            if not text:
                raise ValueError(f"{file} is empty: expected the text of one prompt")
            prompts.append(Prompt(text, {"item_id": file.stem}))
        return self.repeated(prompts)

    def write_images(self, folder: Path, images: Images, prompts: Sequence[Prompt], facts: Mapping[str, str]) -> None:
        """Writes one grid a prompt, ``<item_id>.png``; a single image as it is."""
        write_grids(samples_of(images, prompts), folder)

    def read_images(self, folder: Path, prompts: Sequence[Prompt]) -> Images:
        """Images of any model as one grid a prompt, ``<item_id>.png``; grids of other items are left alone."""
        read = read_grids(folder, self.images_per_prompt)
        indices = images_of_items(read, "DPGPrompts")
        wanted = [prompt.metadata["item_id"] for prompt in prompts]
        lacking = [item for item in dict.fromkeys(wanted) if item not in indices]
        if lacking:
            raise ValueError(f"{folder} lacks the grids of {len(lacking)} prompts, first {lacking[0]}.png")
        of_item = {item: iter(images) for item, images in indices.items()}
        assert isinstance(read.images, ImagesOfGrids)
        return ImagesOfGrids(read.images.grids, self.images_per_prompt, [next(of_item[item]) for item in wanted])
