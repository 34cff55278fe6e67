"""What ``t2ikit export`` writes: one safetensors file that explains itself, alone or in a folder of diffusers.

    model.safetensors            weights, with experiment and manifest as JSON in the metadata, small parts as bytes
    DIR/model_index.json         a folder: what diffusers looks for
    DIR/denoiser/diffusion_pytorch_model.safetensors     the same file
    DIR/text_encoder/, DIR/text_encoder_2/, DIR/vae/     the parts that are included

Whatever takes a checkpoint takes these too, except for going on with a run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import t2ikit
from t2ikit.files import below, parse_json, partial_of, publish
from t2ikit.pretrained import cache_folder, state_sha256

PREFIX = "denoiser."
"""Of the denoiser's weights among those of the module."""
INDEX = "model_index.json"
WEIGHTS = Path("denoiser", "diffusion_pytorch_model.safetensors")
_FILES = "files/"
"""Before the names of files that are kept as bytes."""
_MARK = "t2ikit"


def write_exported(
    path: Path, weights: Mapping[str, Tensor], facts: Mapping[str, Any], files: Mapping[str, Path] | None = None
) -> None:
    """Writes a file, whole or not at all.

    Args:
        path: of the file; its folder is there.
        weights: of the denoiser, by name.
        facts: what a checkpoint says beside the weights (``experiment``, ``data_manifest``, ``space``,
            ``global_step``), plain values.
        files: small files that are kept inside, by their name below the folder of an export.

    Raises:
        OSError: it could not be written; nothing is left of it.
    """
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    for name, file in (files or {}).items():
        tensors[_FILES + name] = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
    metadata = {name: json.dumps(value) for name, value in facts.items()}
    metadata |= {"format": "pt", _MARK: t2ikit.__version__, "sha256": state_sha256(tensors)}
    partial = partial_of(path)
    try:
        save_file(tensors, partial, metadata)
        partial.chmod(0o644)  # the library writes for the owner alone
        publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_exported(path: Path) -> dict[str, Any] | None:
    """What an exported file holds, as a checkpoint holds it; None for a file of another program.

    Raises:
        SafetensorError: it is no safetensors file.
        ValueError: its bytes are not those that were written.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if _MARK not in metadata:
            return None
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if any(" " in name for name in tensors):  # two files of other tensors could have one hash
        raise ValueError(f"{path}: a tensor has a space in its name, which no export writes")
    if state_sha256(tensors) != metadata.get("sha256"):
        raise ValueError(f"{path} is damaged: its bytes have another SHA-256 than those that were written")
    own = ("format", "sha256", _MARK)
    facts = {name: parse_json(value) for name, value in metadata.items() if name not in own}
    state = {PREFIX + name: value for name, value in tensors.items() if not name.startswith(_FILES)}
    return {**facts, "state_dict": state, "callbacks": {}, "t2ikit": metadata[_MARK]}


def exported_weights(path: Path) -> Path | None:
    """The weight file of an exported folder, or an exported file itself; None for anything else."""
    file = path / WEIGHTS if (path / INDEX).is_file() else path
    if not file.is_file() or file.suffix != ".safetensors":
        return None
    try:
        with safe_open(file, "pt") as content:
            return file if _MARK in (content.metadata() or {}) else None
    except SafetensorError:
        return None


def parts_of(weights: Path) -> Path | None:
    """The folder with the parts that are included in an export; those inside of a file are unpacked into the cache.

    Args:
        weights: the weight file.

    Returns:
        None for anything but an exported file.
    """
    if weights.suffix != ".safetensors":
        return None
    if (weights.parent.parent / INDEX).is_file() and weights.parent.name == WEIGHTS.parent.name:
        return weights.parent.parent
    with safe_open(weights, "pt") as file:
        names = [name for name in file.keys() if name.startswith(_FILES)]  # noqa: SIM118
        digest = (file.metadata() or {}).get("sha256", "")
        folder = cache_folder() / "exported" / digest
        if not names or not digest.isalnum():
            return None
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial = partial_of(folder)
            try:
                for name in names:
                    target = below(partial, name.removeprefix(_FILES))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.get_tensor(name).numpy().tobytes())
                publish(partial, folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def text_encoder_name(index: int) -> str:
    """The folder of a text encoder in an export, by its place among them: diffusers counts from the second."""
    return "text_encoder" if index == 0 else f"text_encoder_{index + 1}"
