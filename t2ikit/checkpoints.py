"""Weights on disk: released layouts, and strict loading into a denoiser.

The released CAD-I files (Hugging Face ``Lucasdegeorge/CAD-I``, ``CAD-I_TA``, ``nicolas-dufour/CAD_256``, ``CAD_512``)
hold the network's tensors under bare names; training checkpoints hold them with the prefixes ``network.`` and
``ema_network.``. Constant masks and the frequencies of the noise-level embedding are stored too; we recompute them.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from t2ikit.denoisers import Denoiser

logger = logging.getLogger(__name__)

Coherence = Literal["keep", "drop", "auto"]
LatentNormalisation = Literal["scalar", "channelwise"]

# Best first. Lightning's names for the averaged and the live weights; "" is a released file.
PREFIXES = ("ema_network.", "network.", "")
CONSTANTS = ("attention_mask_dummy", "_mask", "freqs")
COHERENCE_ROOTS = ("coherence_embedder", "coherence_positional_embedding")
ROOTS = (
    "data_pos_embedding",
    "latents",
    "text_registers",
    "patch_extractor",
    "data_ln",
    "time_embedder",
    "transformers_blocks",
    "map_text_tokens",
    "linear_previous",
    "ln_previous",
    "rin_blocks",
    "map_tokens_to_patches",
)


@dataclass(frozen=True)
class UpstreamWeights:
    """What a released layout holds.

    Attributes:
        weights: CAD-I's parameters under the names of :class:`t2ikit.denoisers.CADI`.
        prefix: the prefix they had ("ema_network.", "network." or "").
        ignored: the names left out: other weights, constants, and coherence tensors when those were dropped.
        coherence: whether ``weights`` has the coherence token, that is, needs ``CADI(coherence=True)``.
    """

    weights: dict[str, Tensor]
    prefix: str
    ignored: tuple[str, ...]
    coherence: bool


def read_upstream(state_dict: Mapping[str, Any], coherence: Coherence = "keep") -> UpstreamWeights:
    """Sorts the tensors of a released CAD-I file or of a training checkpoint.

    Args:
        state_dict: name -> tensor, or a whole Lightning checkpoint with such a mapping under "state_dict".
        coherence: "keep" or "drop" the tensors of the coherence token; "auto" drops them when they were never trained.

    Raises:
        ValueError: not a CAD-I layout (the message names keys), or an unknown ``coherence``.
    """
    if coherence not in get_args(Coherence):
        raise ValueError(f"coherence must be one of {', '.join(get_args(Coherence))}; got {coherence!r}")
    inner = state_dict.get("state_dict")
    tensors = cast(Mapping[str, Any], inner) if isinstance(inner, Mapping) else state_dict
    prefix = next(prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in tensors) or not prefix)
    weights: dict[str, Tensor] = {}
    ignored: list[str] = []
    for name, value in tensors.items():
        if not name.startswith(prefix) or name.endswith(CONSTANTS):
            ignored.append(name)
        else:
            weights[name.removeprefix(prefix)] = value
    _check_names(weights, prefix)
    held = any(_root(name) in COHERENCE_ROOTS for name in weights)
    if held and (coherence == "drop" or (coherence == "auto" and not coherence_is_trained(weights))):
        dropped = [name for name in weights if _root(name) in COHERENCE_ROOTS]
        ignored += [prefix + name for name in dropped]
        weights = {name: value for name, value in weights.items() if name not in dropped}
        held = False
    return UpstreamWeights(weights, prefix, tuple(ignored), held)


def from_upstream(state_dict: Mapping[str, Any], coherence: Coherence = "keep") -> dict[str, Tensor]:
    """The tensors of a released CAD-I layout, ready for ``CADI(...).load_state_dict(strict=True)``.

    Bare names and the Lightning prefixes ``network.`` and ``ema_network.`` are understood, the average preferred; so is
    a whole Lightning checkpoint. Constant masks and the recomputed frequencies are left out. What was left out is
    logged.

    Args:
        state_dict: name -> tensor, or a whole checkpoint.
        coherence: "keep" the coherence token's tensors as they are (``CADI(coherence=True)`` loads them), "drop" them,
            or "auto": drop them when they were never trained (:func:`coherence_is_trained`).

    Returns:
        name -> tensor; the tensors are those given, not copies.

    Raises:
        ValueError: not a CAD-I layout (the message names keys), or an unknown ``coherence``.
    """
    read = read_upstream(state_dict, coherence)
    if read.ignored:
        constants = [name for name in read.ignored if name.endswith(CONSTANTS)]
        others = [name for name in read.ignored if not name.endswith(CONSTANTS)]
        logger.warning(
            "%d tensors read%s; ignored %d constants%s and %d other tensors%s",
            len(read.weights),
            f" from {read.prefix}*" if read.prefix else "",
            len(constants),
            _some(constants),
            len(others),
            _some(others),
        )
    return read.weights


def coherence_is_trained(state_dict: Mapping[str, Tensor]) -> bool:
    """False when the coherence embedding is as it was initialised: both biases of its MLP exactly zero.

    Args:
        state_dict: name -> tensor, with the coherence tensors under bare names.

    Raises:
        ValueError: when they are not there.
    """
    biases = [f"coherence_embedder.map_time.{layer}.bias" for layer in (0, 2)]
    missing = [name for name in biases if name not in state_dict]
    if missing:
        raise ValueError(f"no coherence embedding in these weights: {', '.join(missing)} missing")
    return any(bool(state_dict[name].count_nonzero()) for name in biases)


def latent_normalisation(latents: Tensor) -> LatentNormalisation:
    """Which normalisation of the Stable Diffusion VAE's latents a network was trained with, from its samples.

    Compares mean and standard deviation of each channel with those of ImageNet latents under both rules (0.18215 * raw;
    channel-wise zero mean and standard deviation 0.5) and returns the nearer, in squared Wasserstein distance between
    Gaussians.

    Args:
        latents: [N, 4, H, W] sampled latents, 16 or more images.

    Raises:
        ValueError: not four channels.
    """
    if latents.dim() != 4 or latents.shape[1] != 4:
        raise ValueError(f"sampled latents [N, 4, H, W] were expected, got {list(latents.shape)}")
    std, mean = torch.std_mean(latents.double().cpu(), dim=(0, 2, 3))
    found = torch.stack([mean, std])
    scalar = torch.tensor([[1.06, 0.59, 0.02, -0.39], [0.76, 0.84, 0.68, 0.60]], dtype=torch.float64)
    channelwise = torch.tensor([[0.0] * 4, [0.5] * 4], dtype=torch.float64)
    nearer = (found - scalar).square().sum() < (found - channelwise).square().sum()
    return "scalar" if bool(nearer) else "channelwise"


def read_weights(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """The content of a ``.safetensors`` file, or of a PyTorch checkpoint (read without running code from it).

    Args:
        path: the file.
        mmap: read a tensor of a checkpoint from the disk when it is used: what is not needed costs no memory.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        if path.suffix == ".safetensors":
            return cast(dict[str, Any], load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} is not a readable weight file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}; a mapping of names to tensors was expected")
    return content


def load_weights(denoiser: Denoiser, state_dict: Mapping[str, Tensor]) -> None:
    """Loads every weight of a denoiser, and nothing else.

    Args:
        denoiser: changed in place.
        state_dict: name -> tensor under the denoiser's own names (of :func:`from_upstream` for released files).

    Raises:
        ValueError: missing, unknown or misshapen tensors, named; nothing is loaded then.
    """
    own = denoiser.state_dict()
    missing = [name for name in own if name not in state_dict]
    unknown = [name for name in state_dict if name not in own]
    shapes = [
        f"{name}: {list(state_dict[name].shape)} in the file, {list(value.shape)} in the network"
        for name, value in own.items()
        if name in state_dict and state_dict[name].shape != value.shape
    ]
    if missing or unknown or shapes:
        faults = [("missing", missing), ("unknown", unknown), ("of another shape", shapes)]
        listed = "; ".join(f"{len(names)} {fault}{_some(names)}" for fault, names in faults if names)
        raise ValueError(
            f"these weights do not fit {type(denoiser).__name__} as it is configured: {listed}. "
            "Check its sizes and options in the experiment file (denoiser.init_args)"
        )
    denoiser.load_state_dict(dict(state_dict), strict=True)


def _root(name: str) -> str:
    return name.split(".", 1)[0]


def _some(names: list[str], count: int = 4) -> str:
    """Up to ``count`` of the names in brackets, or nothing."""
    if not names:
        return ""
    return f" ({', '.join(names[:count])}{', ...' if len(names) > count else ''})"


def _check_names(weights: Mapping[str, Any], prefix: str) -> None:
    """Raises ValueError unless the names, prefix-free, are those of a CAD-I network."""
    unknown = [name for name in weights if _root(name) not in ROOTS + COHERENCE_ROOTS]
    roots = {_root(name) for name in weights}
    missing = [root for root in ROOTS if root not in roots]
    faults = []
    if unknown:
        faults.append(f"{len(unknown)} unknown keys{_some(unknown)}")
    if missing:
        faults.append(f"nothing under{_some(missing)}")
    faults += [
        f"{name} is a {type(value).__name__}" for name, value in weights.items() if not isinstance(value, Tensor)
    ]
    if faults:
        where = f"under the prefix {prefix}" if prefix else "with bare names"
        raise ValueError(f"not a CAD-I layout {where}: {'; '.join(faults[:4])}")
