"""The released layouts of CAD-I.

The released files (Hugging Face ``Lucasdegeorge/CAD-I``, ``CAD-I_TA``, ``nicolas-dufour/CAD_256``, ``CAD_512``) hold
the network's tensors under bare names; training checkpoints hold them with the prefixes ``network.`` and
``ema_network.``. Constant masks and the frequencies of the noise-level embedding are stored too; we recompute them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from torch import Tensor

from t2ikit.denoisers.adopt import some_of

logger = logging.getLogger(__name__)

Coherence = Literal["keep", "drop", "auto"]
WeightsError = Callable[[dict[str, Tensor]], float]

# Best first. Lightning's names for the averaged and the live weights; "" is a released file.
PREFIXES = ("ema_network.", "network.", "")
CONSTANTS = ("attention_mask_dummy", "_mask", "freqs")
SETTINGS: dict[str, Any] = {
    "noise_embedding_type": "positional",
    "data_positional_embedding_type": "learned",
    "time_scaling": 1000.0,
    "concat_cond_token_to_latents": False,
    "modulate_conditioning": False,
    "use_biases": True,
}
"""Settings of the released program that decide what its network computes, with the values that ours computes."""
OPTIONS = {
    "read_write_heads": "read_write_heads",
    "compute_heads": "compute_heads",
    "compute_dropout": "dropout",
    "compute_stochastic_depth": "drop_path",
}
"""Settings of the released program that no weight shows, and the options of CADI that they are."""
DIMENSIONS = {
    "data_pos_embedding": 2,
    "patch_extractor.weight": 4,
    "latents": 2,
    "text_registers": 2,
    "map_text_tokens.weight": 2,
    "rin_blocks.0.retriever_ca.ffn.0.weight": 2,
    "rin_blocks.0.writer_ca.ffn.0.weight": 2,
}
"""Tensors whose shapes say the sizes of the network, and how many dimensions they have."""
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
        choice: why the coherence token was kept or dropped; empty where there was none.
    """

    weights: dict[str, Tensor]
    prefix: str
    ignored: tuple[str, ...]
    coherence: bool
    choice: str = ""


def read_upstream(
    state_dict: Mapping[str, Any], coherence: Coherence = "keep", error: WeightsError | None = None
) -> UpstreamWeights:
    """Sorts the tensors of a released CAD-I file or of a training checkpoint.

    Args:
        state_dict: name -> tensor, or a whole Lightning checkpoint with such a mapping under "state_dict".
        coherence: "keep" or "drop" the tensors of the coherence token, or "auto"; see :func:`from_upstream`.
        error: see :func:`from_upstream`.

    Raises:
        ValueError: not a CAD-I layout (the message names keys), or an unknown ``coherence``.
    """
    if coherence not in get_args(Coherence):
        raise ValueError(f"coherence must be one of {', '.join(get_args(Coherence))}; got {coherence!r}")
    inner = state_dict.get("state_dict")
    stored = cast(Mapping[str, Any], inner) if isinstance(inner, Mapping) else state_dict
    tensors = _unwrapped_names(stored)
    prefix = next(prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in tensors) or not prefix)
    weights: dict[str, Tensor] = {}
    ignored: list[str] = []
    for name, value in tensors.items():
        if not name.startswith(prefix) or name.endswith(CONSTANTS):
            ignored.append(name)
        else:
            weights[name.removeprefix(prefix)] = value
    _check_names(weights, prefix)
    without = {name: value for name, value in weights.items() if _root(name) not in COHERENCE_ROOTS}
    held, choice = len(without) < len(weights), ""
    if held:
        kept, choice = _choose(coherence, weights, without, error)
        if not kept:
            ignored += [prefix + name for name in weights if name not in without]
            weights, held = without, False
    return UpstreamWeights(weights, prefix, tuple(ignored), held, choice)


def _unwrapped_names(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors under the names of :func:`unwrapped`; ValueError where two have one name."""
    tensors: dict[str, Any] = {}
    for name, value in stored.items():
        if not isinstance(name, str):
            raise ValueError(f"not a CAD-I layout: a name that is no text: {name!r}")
        if unwrapped(name) in tensors:
            raise ValueError(f"these weights hold {unwrapped(name)} twice, once as {name}: which one is meant?")
        tensors[unwrapped(name)] = value
    return tensors


def unwrapped(name: str) -> str:
    """Without the marks of ``torch.compile`` (``_orig_mod.``) and of DistributedDataParallel (``module.``)."""
    return name.replace("_orig_mod.", "").removeprefix("module.")


def _choose(
    coherence: Coherence, weights: dict[str, Tensor], without: dict[str, Tensor], error: WeightsError | None
) -> tuple[bool, str]:
    """Whether the coherence token stays, and why."""
    if coherence != "auto":
        return coherence == "keep", f'coherence token: "{coherence}", as asked for'
    if error is not None:
        ours, theirs = error(weights), error(without)
        kept = ours < theirs
        return kept, f"coherence token {'kept' if kept else 'dropped'}: error {ours:.6g} with it, {theirs:.6g} without"
    kept = coherence_is_trained(weights)
    return kept, f"coherence token {'kept: it was trained' if kept else 'dropped: it was never trained'}"


def from_upstream(
    state_dict: Mapping[str, Any], coherence: Coherence = "keep", error: WeightsError | None = None
) -> dict[str, Tensor]:
    """The tensors of a released CAD-I layout, ready for ``CADI(...).load_state_dict(strict=True)``.

    Bare names and the Lightning prefixes ``network.`` and ``ema_network.`` are understood, the average preferred; so is
    a whole Lightning checkpoint. Constant masks and the recomputed frequencies are left out. What was left out and what
    was chosen is logged.

    Args:
        state_dict: name -> tensor, or a whole checkpoint.
        coherence: "keep" the coherence token's tensors as they are (``CADI(coherence=True)`` loads them), "drop" them,
            or "auto": keep them when the network predicts better with them, as ``error`` measures it. Without
            ``error``, keep them when they were ever trained (:func:`coherence_is_trained`).
        error: how badly weights predict, for "auto": :class:`NoiseError` on a few validation latents. Called with all
            weights and with those without the coherence token.

    Returns:
        name -> tensor; the tensors are those given, not copies.

    Raises:
        ValueError: not a CAD-I layout (the message names keys), or an unknown ``coherence``.
    """
    read = read_upstream(state_dict, coherence, error)
    if coherence == "auto" and read.choice:
        logger.warning("%s", read.choice)
    if read.ignored:
        constants = [name for name in read.ignored if name.endswith(CONSTANTS)]
        others = [name for name in read.ignored if not name.endswith(CONSTANTS)]
        logger.warning(
            "%d tensors read%s; ignored %d constants%s and %d other tensors%s",
            len(read.weights),
            f" from {read.prefix}*" if read.prefix else "",
            len(constants),
            some_of(constants),
            len(others),
            some_of(others),
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


def sizes_of(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options of :class:`t2ikit.denoisers.CADI` that a network of these weights has.

    Sizes are in the shapes of the weights. Numbers of heads are not: they are those of the released program's settings,
    or of its sizes S (3 blocks of width 512), base (width 768) and L.

    Args:
        weights: of :func:`read_upstream`.
        settings: the ``config.json`` beside a released file, by the names of the released program; empty without it.

    Raises:
        ValueError: positions of no square image, a tensor of other dimensions, or settings of a network that CADI does
            not compute.
        KeyError: a tensor is missing.
    """
    for name, value in SETTINGS.items():
        if settings.get(name, value) != value:
            raise ValueError(f"its config.json says {name} {settings[name]!r}; CADI computes {name} {value!r} alone")
    for name, count in DIMENSIONS.items():
        shape = list(weights[name].shape)
        if len(shape) != count or 0 in shape:
            raise ValueError(f"{name} has the shape {shape}; {count} sizes above 0 were expected")
    positions, channels = weights["data_pos_embedding"].shape[0], weights["patch_extractor.weight"]
    patch, grid = channels.shape[-1], math.isqrt(positions)
    if grid * grid != positions:
        raise ValueError(f"data_pos_embedding has {positions} positions, which are no square image")
    width, blocks = weights["latents"].shape[1], _count(weights, "rin_blocks.")
    heads = {(512, 3): (8, 16), (768, 4): (16, 12)}.get((width, blocks), (16, 16))
    sizes = {
        "input_size": grid * patch,
        "in_channels": channels.shape[1],
        "patch_size": patch,
        "data_dim": channels.shape[0],
        "num_latents": weights["latents"].shape[0],
        "latent_dim": width,
        "num_blocks": blocks,
        "num_layers": _count(weights, "rin_blocks.0.processer_sa."),
        "read_write_heads": heads[0],
        "compute_heads": heads[1],
        "latent_mlp_ratio": weights["rin_blocks.0.retriever_ca.ffn.0.weight"].shape[0] // width,
        "data_mlp_ratio": weights["rin_blocks.0.writer_ca.ffn.0.weight"].shape[0] // channels.shape[0],
        "text_dim": weights["map_text_tokens.weight"].shape[1],
        "num_registers": weights["text_registers"].shape[0],
        "coherence": "coherence_positional_embedding" in weights,
    }
    given = {option: settings[name] for name, option in OPTIONS.items() if name in settings}
    return {**sizes, **given}


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered parts have names with this prefix."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in weights if name.startswith(prefix)})


def _root(name: str) -> str:
    return name.split(".", 1)[0]


def _check_names(weights: Mapping[str, Any], prefix: str) -> None:
    """Raises ValueError unless the names, prefix-free, are those of a CAD-I network."""
    unknown = [name for name in weights if _root(name) not in ROOTS + COHERENCE_ROOTS]
    roots = {_root(name) for name in weights}
    missing = [root for root in ROOTS if root not in roots]
    faults = []
    if unknown:
        faults.append(f"{len(unknown)} unknown keys{some_of(unknown)}")
    if missing:
        faults.append(f"nothing under{some_of(missing)}")
    faults += [
        f"{name} is a {type(value).__name__}" for name, value in weights.items() if not isinstance(value, Tensor)
    ]
    if faults:
        where = f"under the prefix {prefix}" if prefix else "with bare names"
        raise ValueError(f"not a CAD-I layout {where}: {'; '.join(faults[:4])}")
