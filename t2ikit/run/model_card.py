"""The model card of an export, README.md as the Hub reads it: what the model is, how it is used, scores, licence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

import t2ikit
from t2ikit.checkpoints.runs import run_folder_of
from t2ikit.config.cards import card_of
from t2ikit.config.files import shipped_experiments, shipped_names
from t2ikit.metrics.fingerprint import Score, read_scores
from t2ikit.run.trained import TrainedModel

OTHER = "other"
"""The Hub's name of a licence that it does not know, or that was not chosen."""


def model_card(
    trained: TrainedModel, name: str, licence: str, parts: Sequence[str], repository: str | None = None
) -> str:
    """The text of the card.

    Args:
        trained: the model.
        name: of the export.
        licence: of the weights, as the Hub names licences.
        parts: text encoders and autoencoder, in words.
        repository: of the Hub, where it will be.
    """
    head = {
        "license": licence,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["t2ikit", "text-to-image"],
    }
    scores = _scores(trained)
    sections = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {name}\n\n{_about(trained)}",
        _use(name, repository),
        f"## What it is\n\n{_facts(trained, parts)}",
        f"## Scores\n\n{scores}",
        f"## Licence\n\n{_licence(licence)}",
    ]
    return "\n\n".join(sections) + "\n"


def _use(name: str, repository: str | None) -> str:
    place, imported = f'"{name}"', ""
    if repository is not None:
        place, imported = f'snapshot_download("{repository}")', "\nfrom huggingface_hub import snapshot_download"
    return f"""## Use

With `pip install t2ikit`:

```python
import t2ikit{imported}

t2ikit.load({place}).sample("a prompt", seed=0)[0].save("picture.png")
```

or by diffusers, to which importing `t2ikit.pipeline` says the class; no code of this folder is run:

```python
import t2ikit.pipeline
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{repository or name}", trust_remote_code=False)
pipeline("a prompt", seed=0).images[0].save("picture.png")
```"""


def _about(trained: TrainedModel) -> str:
    run = trained.config["run"]["name"]
    said = f"Trained by t2ikit {t2ikit.__version__}, run `{run}`."
    if run in shipped_names():
        said += f" Its experiment, as it is shipped: {card_of(shipped_experiments() / f'{run}.yaml').title}"
    return said


def _facts(trained: TrainedModel, parts: Sequence[str]) -> str:
    module, manifest, config = trained.module, trained.manifest, trained.config
    parameters = sum(parameter.numel() for parameter in module.denoiser.parameters())
    data = (config.get("data") or {}).get("init_args") or {}
    rows = {
        "network": f"{type(module.denoiser).__name__}, {parameters:,} parameters",
        "process": type(module.process).__name__,
        "weights": trained.weights,
        "optimizer steps": f"{trained.step:,}",
        "batch size": str(data.get("batch_size", "not known")),
        "data": f"{manifest.count:,} records from {manifest.source or 'an unnamed source'}",
        "captions": manifest.captions or "none named",
        "SHA-256 of the checkpoint": trained.sha256,
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])
    return "\n\n".join([table, "\n".join(f"- {part}" for part in parts)])


def _scores(trained: TrainedModel) -> str:
    """The scores of this step, by snapshot, each with the hash of its fingerprint."""
    rows = []
    for folder in sorted((run_folder_of(trained.checkpoint) / "samples").glob(f"*/scores/step-{trained.step:08d}")):
        rows += [_row(folder, score) for score in read_scores(folder).values()]
    if not rows:
        return f"The run has not been scored at step {trained.step:,}."
    note = "Scores of one name may be compared where their fingerprints are equal."
    if trained.config["data"]["class_path"] == "t2ikit.shapes.ShapesData":
        note += " Scores on shapes are not comparable with the papers'."
    return "\n".join(["| score | value | fingerprint |", "|---|---|---|", *rows, "", note])


def _row(folder: Path, score: Score) -> str:
    error = "" if score.standard_error is None else f" ± {score.standard_error:.2g}"
    return f"| {folder.parents[1].name}/{score.name} | {score.value:.4g}{error} | {score.fingerprint.hash()[:12]} |"


def _licence(licence: str) -> str:
    if licence == OTHER:
        return "Not chosen yet. The data that a model was trained on may limit its use."
    return f"{licence}, for the weights. The data that they were trained on may limit their use."
