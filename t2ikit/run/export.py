"""``t2ikit export``: a trained model as a folder of diffusers or as one file, whole or not at all.

A part that the Hub has under a name is named, with its revision and hash; any other is included: the text encoder that
was built for the data, an autoencoder that comes with the kit or was trained, a model from a local folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
from transformers import AutoTokenizer

from t2ikit.checkpoints.exported import INDEX, WEIGHTS, text_encoder_name, write_exported
from t2ikit.checkpoints.runs import kept_plugins, run_folder_of
from t2ikit.config.errors import ConfigError
from t2ikit.encoders.autoencoders import LatentSpace
from t2ikit.encoders.text import TOKENIZER_FILES, AnyTextModel, split_layer
from t2ikit.files import partial_of, publish, recover, require_folder
from t2ikit.pretrained import PretrainedFolder, find_pretrained, weight_files
from t2ikit.run.model_card import model_card
from t2ikit.run.trained import TrainedModel

PIPELINE = "t2ikit.pipeline"
"""The module whose classes ``model_index.json`` names."""
_SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")
_SMALL = 2**24
"""Bytes of a part that goes into a single file."""


@dataclass(frozen=True)
class Part:
    """A text encoder or the autoencoder of an export.

    Attributes:
        name: of its folder in the export.
        source: its files; None for one that is only named.
        said: for people.
    """

    name: str
    source: PretrainedFolder | None
    said: str


def export_folder(
    trained: TrainedModel,
    out: Path,
    *,
    licence: str,
    include: bool = False,
    force: bool = False,
    repository: str | None = None,
) -> Path:
    """Writes a folder that ``DiffusionPipeline.from_pretrained`` and ``t2ikit.load`` take.

    Args:
        trained: the model, with the weights that are exported.
        out: the folder.
        licence: of the weights, as the Hub names licences.
        include: whether text encoders and an autoencoder of the Hub are included too.
        force: whether a folder that is there is replaced.
        repository: of the Hub, where it will be, for the model card.

    Returns:
        The folder.

    Raises:
        ConfigError: something is there already, or a part cannot be found.
    """
    parts = _parts(trained, include)

    def write(folder: Path) -> None:
        (folder / WEIGHTS).parent.mkdir(parents=True)
        write_exported(folder / WEIGHTS, trained.module.denoiser.state_dict(), _facts(trained))
        components = {"denoiser": [PIPELINE, "ExportedDenoiser"], "scheduler": [PIPELINE, "SamplerSettings"]}
        _write_json(folder / "denoiser" / "config.json", _versions("ExportedDenoiser"))
        (folder / "scheduler").mkdir()
        settings = {"steps": 50, "method": trained.module.process.solver, "guidance": 2.0, "process": _process(trained)}
        _write_json(folder / "scheduler" / "scheduler_config.json", {**_versions("SamplerSettings"), **settings})
        for part in parts:
            components |= _write_part(part, folder)
        _write_json(folder / INDEX, {**_versions("T2IKitPipeline"), **components})
        plugins = kept_plugins(run_folder_of(trained.checkpoint))
        if plugins is not None:
            shutil.copytree(plugins, folder / "plugins")
        card = model_card(trained, out.name, licence, [part.said for part in parts], repository)
        (folder / "README.md").write_text(card, encoding="utf-8")

    return _written(out, force, write, folder=True)


def export_file(trained: TrainedModel, out: Path, *, force: bool = False) -> Path:
    """Writes one safetensors file that ``t2ikit.load`` and ``model.start`` take; small parts are inside of it.

    Raises:
        ConfigError: something is there already, the name is no ``*.safetensors``, or a part cannot be found.
    """
    if out.suffix != ".safetensors":
        raise ConfigError(f"{out}: the file ends with .safetensors, such as {out.with_suffix('.safetensors')}")
    files: dict[str, Path] = {}
    for part in _parts(trained, include=False):
        chosen = [] if part.source is None else _files(part.source.folder)
        if sum(file.stat().st_size for file in chosen) <= _SMALL:
            files |= {f"{part.name}/{file.name}": file for file in chosen}
    state = trained.module.denoiser.state_dict()
    return _written(out, force, lambda path: write_exported(path, state, _facts(trained), files), folder=False)


def _written(out: Path, force: bool, write: Callable[[Path], None], folder: bool) -> Path:
    """What ``write`` makes beside its place gets its name when it is whole."""
    if out.exists() and not force:
        raise ConfigError(f"{out} is there already: give another name, or replace it with --force")
    if out.exists() and (out.is_dir() != folder or (folder and any(out.iterdir()) and not (out / INDEX).is_file())):
        raise ConfigError(f"{out} is no export, and is not replaced: give another name")
    require_folder(out.parent, "the export")
    out.parent.mkdir(parents=True, exist_ok=True)
    recover(out)
    partial = partial_of(out)
    try:
        if folder:
            partial.mkdir()
        write(partial)
        publish(partial, out)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)
    return out


def _facts(trained: TrainedModel) -> dict[str, Any]:
    """What a checkpoint says beside its weights."""
    return {
        "experiment": trained.config,
        "data_manifest": trained.manifest.to_json(),
        "space": trained.module.space.description(),
        "global_step": trained.step,
        "weights": trained.weights,
        "checkpoint_sha256": trained.sha256,
    }


def _process(trained: TrainedModel) -> Any:
    objective = (trained.config["model"].get("init_args") or {}).get("objective") or {}
    return (objective.get("init_args") or {}).get("process")


def _versions(class_name: str) -> dict[str, str]:
    return {"_class_name": class_name, "_diffusers_version": diffusers.__version__}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# ------------------------------------------------------------------ text encoders and autoencoder


def _parts(trained: TrainedModel, include: bool) -> list[Part]:
    """The parts of a model; those that only the Hub has are not looked for unless they are included.

    Raises:
        FileNotFoundError, ValueError: one is missing or has other weights.
    """
    parts = []
    for index, (reference, source, revision) in enumerate(trained.encoder_sources()):
        name, option = text_encoder_name(index), "--text-encoder"
        of_hub = reference.revision is not None
        found = None
        if include or not of_hub:
            found = find_pretrained(split_layer(source)[0], revision, option, TOKENIZER_FILES)
            if split_layer(reference.name)[1] == -1 and reference.sha256 not in ("", found.reference.sha256):
                raise ConfigError(f"{source} has other weights than the text encoder of the training data: {option}")
        parts.append(Part(name, found, _said("text encoder", reference.name, reference.revision, found)))
    space = trained.module.space
    if isinstance(space, LatentSpace):
        of_hub = trained.manifest.autoencoder is not None and trained.manifest.autoencoder.revision is not None
        found = None
        if include or not of_hub:
            space.load()
            found = find_pretrained(space.autoencoder, space.revision, "--autoencoder")
        recorded = trained.manifest.autoencoder
        name, revision = (recorded.name, recorded.revision) if recorded else (space.autoencoder, space.revision)
        parts.append(Part("vae", found, _said("autoencoder", name, revision, found)))
    return parts


def _said(kind: str, name: str, revision: str | None, source: PretrainedFolder | None) -> str:
    at = f" at revision {revision}" if revision else ""
    return f"{kind} {name}{at}, {'included' if source is not None else 'not included: loaded from the Hub'}"


def _files(folder: Path) -> list[Path]:
    """The files of a model's folder that loading it needs."""
    settings = {file for pattern in _SETTINGS for file in folder.glob(pattern)}
    tokenizer = {folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}
    return sorted({*weight_files(folder), *settings, *tokenizer})


def _write_part(part: Part, folder: Path) -> dict[str, list[str]]:
    """Copies a part, byte by byte, so that its hash stays; the components that diffusers loads from it."""
    if part.source is None:
        return {}
    target = folder / part.name
    target.mkdir()
    for file in _files(part.source.folder):
        shutil.copyfile(file, target / file.name)
    if part.name == "vae":
        return {part.name: ["diffusers", "AutoencoderKL"]}
    tokenizer_name = part.name.replace("text_encoder", "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(target, trust_remote_code=False)
    tokenizer.save_pretrained(folder / tokenizer_name)
    return {
        part.name: ["transformers", AnyTextModel.class_of(target).__name__],
        tokenizer_name: ["transformers", type(tokenizer).__name__],
    }
