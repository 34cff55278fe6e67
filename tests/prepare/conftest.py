"""Small data sets on their way: a folder of generated photos, and the same prepared."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from PIL import Image

from t2ikit.prepare.captions.captions import prepare_captions
from t2ikit.prepare.cutmix import prepare_cutmix
from t2ikit.prepare.encode.encode import prepare_encode
from t2ikit.prepare.images import prepare_images

CLASSES = {
    "train": ["n02012849", "n03126707", "n01440764", "n03710637"],  # crane (134), crane (517), tench (0), maillot (638)
    "val": ["n03710721", "n01440764"],  # maillot (639), tench (0)
}
PER_CLASS = 3


def photo(seed: int, size: tuple[int, int] = (50, 40)) -> Image.Image:
    """A smooth random image, width x height."""
    values = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 4 classes of 3 photos, val/ with 2 classes of 3."""
    root = tmp_path_factory.mktemp("photos")
    for split, classes in CLASSES.items():
        for number, wnid in enumerate(classes):
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for k in range(PER_CLASS):
                photo(100 * number + k + (split == "val") * 50).save(folder / f"{wnid}_{k}.JPEG", quality=95)
    return root


@pytest.fixture(scope="session")
def prepared_once(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every step, 16 x 16 pixels with a small T5. Not to be changed."""
    out = tmp_path_factory.mktemp("prepared") / "data"
    prepare_images(str(photos), out, 16)
    prepare_captions(out)
    prepare_cutmix(out, "cmall")
    prepare_encode(out, autoencoder="pixels", text_encoder="small", text_dim=32)
    return out


@pytest.fixture
def prepared(prepared_once: Path, tmp_path: Path) -> Path:
    """A copy of the prepared data set, to be changed."""
    return Path(shutil.copytree(prepared_once, tmp_path / "data"))


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA-NeXT as a folder: 28 x 28 pixels a view, 16 tokens."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llava-next"
    tiny_models.tiny_llava(folder)
    return folder
