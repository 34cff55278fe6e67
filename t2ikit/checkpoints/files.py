"""Weights on disk, and their strict loading into a denoiser."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from t2ikit.checkpoints.exported import read_exported
from t2ikit.checkpoints.foreign import kind_of_file, reason_of
from t2ikit.checkpoints.saving import fault_of, is_complete
from t2ikit.denoisers import Denoiser
from t2ikit.denoisers.adopt import listed_faults


def read_weights(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """The content of a ``.safetensors`` file, or of a PyTorch checkpoint (read without running code from it).

    A checkpoint of a run is compared with its hash, which reads all of it; so is a file that `t2ikit export` wrote,
    which is given as the content of a checkpoint.

    Args:
        path: the file.
        mmap: read a tensor of a checkpoint from the disk when it is used: what is not needed costs no memory.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        if path.suffix == ".safetensors":
            return read_exported(path) or cast(dict[str, Any], load_file(path))
        fault = fault_of(path) if is_complete(path) else None  # torch reads its older format, and says what it cannot
        if fault is not None:
            raise ValueError(f"{path} is not a readable weight file: {fault}")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (SafetensorError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a readable weight file: {reason_of(error)}") from error
    except (EOFError, OSError) as error:
        raise ValueError(f"{path} is not a readable weight file: {kind_of_file(path)} ({error})") from error
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
    weights = denoiser.state_dict()
    missing = [name for name in weights if name not in state_dict]
    unknown = [name for name in state_dict if name not in weights]
    shapes = [
        f"{name}: {list(state_dict[name].shape)} in the file, {list(value.shape)} in the network"
        for name, value in weights.items()
        if name in state_dict and state_dict[name].shape != value.shape
    ]
    faults = listed_faults(missing, unknown, shapes)
    if faults:
        raise ValueError(
            f"these weights do not fit {type(denoiser).__name__} as it is configured: {faults}. "
            "Check its sizes and options in the experiment file (denoiser.init_args)"
        )
    denoiser.load_state_dict(dict(state_dict), strict=True)
