"""A denoiser out of any checkpoint of a run: it holds its experiment, so no data set and no run folder is needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from t2ikit.checkpoints.exported import PREFIX
from t2ikit.checkpoints.files import load_weights, read_weights
from t2ikit.checkpoints.foreign import refuse_foreign
from t2ikit.checkpoints.runs import find_checkpoint
from t2ikit.config.class_nodes import check_component
from t2ikit.config.errors import ConfigError
from t2ikit.config.origins import Origins
from t2ikit.denoisers import Denoiser, SavedDenoiser

Weights = Literal["ema", "raw", "auto"]


def load_denoiser(
    checkpoint: str | Path, weights: Weights = "ema", decay: float | None = None, origins: Origins | None = None
) -> Denoiser:
    """The denoiser of a run, built from the experiment that its checkpoint holds, with its weights.

    Args:
        checkpoint: a ``step-*.ckpt``, wherever it lies, or a run folder, whose newest complete checkpoint is taken.
        weights: see :func:`stored_weights`.
        decay: which profile of the averages; None takes the first.
        origins: which modules its class paths may name; by default the kit, its libraries and the current folder.

    Returns:
        On the CPU, in evaluation mode, without gradients.

    Raises:
        ConfigError: no checkpoint, or a denoiser that cannot be built.
        ValueError: it is no checkpoint of a text-to-image run, holds no averages, or its weights do not fit.
    """
    path = find_checkpoint(Path(checkpoint), "checkpoint")
    content = read_weights(path, mmap=True)
    built = stored_denoiser(content, path, origins)
    load_weights(built, stored_weights(content, path, weights, decay)[0])
    return built.eval().requires_grad_(False)


def stored_denoiser(content: Mapping[str, Any], path: Path, origins: Origins | None = None) -> Denoiser:
    """The denoiser of the experiment that a checkpoint holds, fresh: without its weights.

    Raises:
        ConfigError: it cannot be built.
        ValueError: it is no checkpoint of a text-to-image run.
    """
    model = stored_experiment(content, path)["model"]
    node = (model.get("init_args") or {}).get("denoiser")
    if node is None:
        raise ValueError(f"checkpoint {path}: not a checkpoint of a text-to-image run (`t2ikit run`)")
    built: Denoiser = check_component(f"{path}: denoiser", node, Denoiser, origins=origins or Origins()).build()
    return built


def filled(network: Denoiser | SavedDenoiser, origins: Origins | None = None) -> Denoiser:
    """The denoiser that an experiment names by its checkpoint; one that is there already as it is."""
    if isinstance(network, SavedDenoiser):
        return load_denoiser(network.checkpoint, network.weights, origins=origins)
    return network


def stored_experiment(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The resolved experiment that a checkpoint holds: the one that the run had when it was written.

    Raises:
        ConfigError: it holds none, or one whose model is no class with arguments.
    """
    experiment = refuse_foreign(content, path, "checkpoint")["experiment"]
    model = experiment.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("init_args") or {}, dict):
        raise ConfigError(
            f"checkpoint {path}: the model of its experiment is not {{class_path: ..., init_args: ...}}, but {model!r}"
        )
    return dict(experiment)


def stored_weights(
    content: Mapping[str, Any], path: Path, weights: Weights, decay: float | None = None
) -> tuple[dict[str, Tensor], str]:
    """The weights of the denoiser in a checkpoint, with averages in place of what they average.

    Args:
        content: of the checkpoint.
        path: its file, for messages.
        weights: "ema" for the averages of the EMA callback, "raw" for the weights themselves, "auto" for the averages
            where there are any, as a snapshot of the run takes them.
        decay: which profile of the averages; None takes the first.

    Returns:
        The weights by name, and which they are: "ema 0.9999" or "raw".

    Raises:
        ValueError: an unknown ``weights``, or no such averages.
    """
    if weights not in get_args(Weights):
        raise ValueError(f"weights is one of {', '.join(get_args(Weights))}; got {weights!r}")
    state: dict[str, Tensor] = {
        name.removeprefix(PREFIX): value for name, value in content["state_dict"].items() if name.startswith(PREFIX)
    }
    if "weights" in content:  # an export holds one kind of them
        if weights not in ("auto", str(content["weights"]).partition(" ")[0]):
            raise ValueError(f"{path} holds the weights {content['weights']!r} alone; take these (weights auto)")
        return state, str(content["weights"])
    profiles = content.get("callbacks", {}).get("EMA", {}).get("profiles") or {}
    if weights == "ema" and not profiles:
        raise ValueError(
            f"checkpoint {path} holds no averaged weights (no EMA callback): take the raw ones (--weights raw; of a "
            "start, weights: raw)"
        )
    if weights == "raw" or not profiles:
        return state, "raw"
    profile = next(iter(profiles)) if decay is None else str(decay)
    if profile not in profiles:
        raise ValueError(f"checkpoint {path} has no averages of decay {decay}, only of {', '.join(profiles)}")
    return state | profiles[profile], f"ema {profile}"
