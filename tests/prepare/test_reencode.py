"""``prepare reencode``: pixels that an autoencoder gives back, the control of JPEG, kills, what is refused."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from t2ikit.cli import main
from t2ikit.encoders.autoencoders import LatentSpace
from t2ikit.prepare.reencode import prepare_reencode
from t2ikit.prepare.reencode_options import Reencoding

EMBEDDED = "embedded:shapes-full"
WNIDS = ("n01443537", "n01629819")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three photos of each class, of several sizes and kinds, in train; one in val."""
    folder = tmp_path / "photos"
    for row, wnid in enumerate(WNIDS):
        (folder / "train" / wnid).mkdir(parents=True)
        (folder / "val" / wnid).mkdir(parents=True)
        for number in range(3):
            pixels = np.random.default_rng(10 * row + number).integers(0, 256, (40 + number, 36, 3), np.uint8)
            image = Image.fromarray(pixels).convert("L" if number == 1 else "RGB")
            image.save(folder / "train" / wnid / f"{wnid}_{number}.JPEG", "JPEG")
        image.save(folder / "val" / wnid / "photo.png")
    return folder


def pixels_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): Image.open(path).tobytes() for path in sorted(folder.rglob("*.*g"))}


def test_pictures_are_those_of_the_autoencoder(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "vae"
    words = ["prepare", "reencode", "--source", str(source), "--autoencoder", EMBEDDED, "--size", "32"]
    assert main([*words, "--out", str(out), "--device", "cpu", "--batch-size", "3"]) == 0
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert (
        len(names) == 8
        and names[0] == f"train/{WNIDS[0]}/{WNIDS[0]}_0.png"
        and names[-1] == f"val/{WNIDS[1]}/photo.png"
    )
    plain = tmp_path / "plain"
    prepare_reencode(source, plain, Reencoding(autoencoder="none", size=32))
    space = LatentSpace(EMBEDDED, channels=0)
    before = torch.from_numpy(np.array(Image.open(plain / names[0]))).permute(2, 0, 1)[None]
    after = torch.from_numpy(np.array(Image.open(out / names[0]))).permute(2, 0, 1)[None]
    expected = (space.images(space.normalise(space.encode(before)[0])) * 255).round()
    assert (expected - after).abs().max() <= 1 and not torch.equal(before, after)
    known = json.loads((out / "reencode.json").read_text())
    assert known["autoencoder_sha256"] == space.reference.sha256 and known["format"] == "png"


def test_jpeg_is_the_control(source: Path, tmp_path: Path) -> None:
    plain, control = tmp_path / "plain", tmp_path / "jpeg"
    prepare_reencode(source, plain, Reencoding(autoencoder="none", size=32))
    prepare_reencode(source, control, Reencoding(autoencoder="none", size=32, format="jpeg"))
    name = f"train/{WNIDS[0]}/{WNIDS[0]}_0"
    stream = io.BytesIO()
    Image.open(plain / f"{name}.png").save(stream, "JPEG", quality=75)
    assert Image.open(stream).tobytes() == Image.open(control / f"{name}.jpg").tobytes()


def test_classes_and_counts_are_chosen(source: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.tsv").write_text(f"{WNIDS[1]}\tsalamander\nn01440764\ttench\n")
    words = ["prepare", "reencode", "--source", str(source), "--autoencoder", "none", "--size", "16", "--device", "cpu"]
    words += ["--classes", str(tmp_path / "classes.tsv"), "--per-class", "2", "--out", str(tmp_path / "few")]
    assert main(words) == 0
    assert [path.parent.name for path in (tmp_path / "few").rglob("*.png")] == [WNIDS[1]] * 3


KILLED = """
import os, signal, sys
from pathlib import Path
from t2ikit.prepare import reencode
from t2ikit.prepare.reencode_options import Reencoding

write, left = reencode.write_whole, [int(sys.argv[3])]


def write_and_end(path, content):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, content)


reencode.write_whole = write_and_end
options = Reencoding(autoencoder="embedded:shapes-full", size=32, sample=True)
reencode.prepare_reencode(Path(sys.argv[1]), Path(sys.argv[2]), options, batch_size=2)
"""


@pytest.mark.long
def test_a_killed_call_goes_on(source: Path, tmp_path: Path) -> None:
    options = Reencoding(autoencoder=EMBEDDED, size=32, sample=True)
    prepare_reencode(source, tmp_path / "whole", options, batch_size=2)
    cut = tmp_path / "cut"
    command = [sys.executable, "-c", KILLED, str(source), str(cut), "5"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == -signal.SIGKILL and len(pixels_of(cut)) == 3
    first = min(cut.rglob("*.png"))
    before = first.stat().st_mtime_ns
    prepare_reencode(source, cut, options, batch_size=2)
    assert pixels_of(cut) == pixels_of(tmp_path / "whole") and first.stat().st_mtime_ns == before


def test_overwrite_removes_all_that_was_made_in_another_way(source: Path, tmp_path: Path) -> None:
    """Also what this call does not make again, and of another ending; never a file of somebody else."""
    out = tmp_path / "out"
    prepare_reencode(source, out, Reencoding(autoencoder="none", size=16))
    own = [out / "own.png", out / "train" / WNIDS[0] / "own.jpg"]
    for path in own:
        Image.new("RGB", (9, 9)).save(path)
    larger = Reencoding(autoencoder="none", size=24)
    prepare_reencode(source, out, larger, folders=[WNIDS[0]], overwrite=True)
    prepare_reencode(source, out, larger)
    made = {path for path in out.rglob("*.*g") if path not in own}
    assert len(made) == 8 and {Image.open(path).size for path in made} == {(24, 24)}
    prepare_reencode(source, out, Reencoding(autoencoder="none", size=24, format="jpeg"), overwrite=True)
    assert set(out.rglob("*.png")) == {own[0]} and len(list(out.rglob("*.jpg"))) == 8 + 1
    assert {Image.open(path).size for path in own} == {(9, 9)}
    taken = out / "train" / WNIDS[0] / f"{WNIDS[0]}_0.png"
    Image.new("RGB", (9, 9)).save(taken)
    with pytest.raises(ValueError, match=f"{taken}, of which .* does not say.*--out"):
        prepare_reencode(source, out, larger, overwrite=True)
    assert Image.open(taken).size == (9, 9)


def test_what_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_reencode(source, out, Reencoding(autoencoder="none", size=16))
    with pytest.raises(ValueError, match="holds pictures of another size.*--overwrite"):
        prepare_reencode(source, out, Reencoding(autoencoder="none", size=24))
    prepare_reencode(source, out, Reencoding(autoencoder="none", size=24), overwrite=True)
    assert {Image.open(path).size for path in out.rglob("*.png")} == {(24, 24)}
    with pytest.raises(ValueError, match="--size 30 is no multiple of"):
        prepare_reencode(source, tmp_path / "odd", Reencoding(autoencoder=EMBEDDED, size=30))
    with pytest.raises(FileNotFoundError, match="no picture below .* in folders of these classes"):
        prepare_reencode(source, tmp_path / "none", Reencoding(autoencoder="none"), folders={"n00000000"})
    with pytest.raises(ValueError, match="--quality is 1 to 95"):
        Reencoding(autoencoder="none", quality=100)
    broken = source / "train" / WNIDS[0] / f"{WNIDS[0]}_2.JPEG"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"n01443537_2.JPEG is no whole picture"):
        prepare_reencode(source, tmp_path / "broken", Reencoding(autoencoder="none", size=16))
    (source / "train" / WNIDS[0] / f"{WNIDS[0]}_0.png").write_bytes(broken.read_bytes())
    with pytest.raises(ValueError, match="would both become n01443537_0.png"):
        prepare_reencode(source, tmp_path / "double", Reencoding(autoencoder="none", size=16))


@pytest.mark.parametrize("split", ["", "train"])
def test_linked_class_folders_are_taken(source: Path, tmp_path: Path, split: str) -> None:
    linked = source / "train" / WNIDS[1]
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(source)
    folder = source if split else source / "train"
    prepare_reencode(folder, tmp_path / "out", Reencoding(autoencoder="none", size=16))
    names = [path.relative_to(folder) for path in folder.rglob("*.*") if path.is_file()]
    names += [linked.relative_to(folder) / f"{WNIDS[1]}_{number}.JPEG" for number in range(3)]
    made = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.png")}
    assert made == {name.with_suffix(".png") for name in names}
