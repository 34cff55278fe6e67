"""Trains a KL autoencoder of diffusers' class on pictures, for latents of a data set of one's own.

Everything random is a function of (seed, slot), so that a call that was killed goes on from its last saved state and
ends at the same weights, bit for bit on one kind of device with the same number of threads.

Shapes: B pictures of a batch, [B, 3, H, W] uint8; C channels of the latents, a side of which is that of a picture
halved once for each entry of ``block_channels`` after the first.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from t2ikit import rng
from t2ikit.files import parse_json, partial_of, publish, recover, write_whole
from t2ikit.prepare.autoencoder_options import AutoencoderOptions
from t2ikit.prepare.steps import sha256_of_json, versions
from t2ikit.records.record_set import RecordSet

DESCRIPTION = "training.json"
"""What made the weights, and their scores; beside them in the folder."""

_WARM_UP = 0.05  # share of the steps
_LARGEST_GRADIENT = 1.0
_BETAS = (0.9, 0.99)
_SECONDS_BETWEEN_SAVES = 60.0
_SCORED_AT_ONCE = 64
_EMPTY = 0.1  # least share of a channel's variance that comes from the pictures

Score = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]
"""Takes pictures and what became of them, both [N, 3, H, W] uint8, and returns scores by name."""


class Pictures(Protocol):
    """What an autoencoder is trained on, and judged by.

    Attributes:
        identity: decides all pictures.
        size: (H, W).
    """

    identity: str
    size: tuple[int, int]

    def batch(self, first_slot: int, count: int) -> np.ndarray:
        """The pictures of ``count`` slots of the training, [count, 3, H, W] uint8."""

    def held_out(self, count: int) -> np.ndarray:
        """At most ``count`` pictures that no batch holds, [N, 3, H, W] uint8."""


class StoredPictures:
    """The pixels of a prepared data set: ``images/train`` and ``images/val`` of a folder, or its ``train`` and ``val``.

    Args:
        root: folder of the data set.
        seed: of the order.

    Raises:
        FileNotFoundError: there is no such set.
        ValueError: it holds latents.
    """

    def __init__(self, root: Path, seed: int) -> None:
        folder = root / "images" if (root / "images").is_dir() else root
        self._train, self._val = RecordSet(folder / "train"), RecordSet(folder / "val")
        self._seed = seed
        self._orders: dict[int, np.ndarray] = {}
        for records in (self._train, self._val):
            if records.manifest.kind != "pixels":
                raise ValueError(f"{records.folder} holds {records.manifest.kind}: give --source a set of pixels")
        self.size = (self._train.manifest.image_shape[1], self._train.manifest.image_shape[2])
        self.identity = sha256_of_json([self._train.manifest.chunk_sha256, self._val.manifest.chunk_sha256])

    def batch(self, first_slot: int, count: int) -> np.ndarray:
        """Each picture once in an epoch, in an order of the epoch's own."""
        places = [divmod(slot, len(self._train)) for slot in range(first_slot, first_slot + count)]
        return self._read(self._train, [int(self._order(epoch)[index]) for epoch, index in places])

    def held_out(self, count: int) -> np.ndarray:
        """The first pictures of val."""
        return self._read(self._val, range(min(count, len(self._val))))

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {epoch: rng.permutation(self._seed, "autoencoder-order", epoch, len(self._train))}
        return self._orders[epoch]

    @staticmethod
    def _read(records: RecordSet, indices: Any) -> np.ndarray:
        return np.stack([np.asarray(records.view(index).array("image")) for index in indices])


def prepare_autoencoder(
    pictures: Pictures,
    out: Path,
    options: AutoencoderOptions,
    device: str,
    overwrite: bool,
    command: str,
    score: Score | None,
) -> dict[str, Any]:
    """Trains an autoencoder into a folder of diffusers' format, or returns what is known of it if it is there.

    Args:
        pictures: to train on.
        out: the folder; it appears whole.
        options: see there.
        device: a name of torch, or "auto" for a GPU where there is one.
        overwrite: replace another autoencoder; nothing else is ever replaced.
        command: recorded beside the weights.
        score: further scores of decoded pictures.

    Returns:
        The content of ``training.json``.

    Raises:
        FileExistsError: the folder or an unfinished training is one of other options.
        ValueError: sides of the pictures that cannot be halved often enough.
    """
    if any(side % options.downsampling for side in pictures.size):
        raise ValueError(
            f"pictures of {pictures.size[0]} x {pictures.size[1]} cannot be halved {len(options.block_channels) - 1} "
            "times: give fewer --block-channels, or pictures of another size"
        )
    wanted = json.loads(json.dumps({"options": asdict(options), "pictures": pictures.identity}))
    recover(out)
    known = _known(out)
    if known is not None and {name: known.get(name) for name in wanted} == wanted:
        return known
    if known is not None and not overwrite:
        raise FileExistsError(f"{out} holds another autoencoder: choose another --out, or replace it with --overwrite")
    if known is None and out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} holds something else, no autoencoder of this command: choose another --out")
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    training = _Training(pictures, options, torch.device(chosen), out.with_name(f".{out.name}.training.pt"), wanted)
    training.restore(overwrite)
    training.run()
    model = training.model.eval()
    if options.half:
        model = model.half().float()  # scored as it will be loaded
    scores, statistics = _judge(model, pictures, options, torch.device(chosen), score)
    model.register_to_config(**statistics)
    description = wanted | {"scores": scores, "command": command, "versions": versions("torch", "diffusers")}
    partial = partial_of(out)
    (model.half() if options.half else model).save_pretrained(partial)
    (partial / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    for path in partial.iterdir():  # diffusers lets the owner alone read the weights
        path.chmod((partial / DESCRIPTION).stat().st_mode)
    publish(partial, out)
    training.state.unlink(missing_ok=True)
    return description


def build_autoencoder(options: AutoencoderOptions, size: tuple[int, int]) -> Any:
    """An ``AutoencoderKL`` with weights of the seed alone."""
    from diffusers import AutoencoderKL

    levels = len(options.block_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.derived_seed(options.seed, "autoencoder-weights"))
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=options.block_channels,
            layers_per_block=options.layers_per_block,
            latent_channels=options.latent_channels,
            norm_num_groups=8,
            sample_size=max(size),
            mid_block_add_attention=False,
        )


def reconstruction_loss(decoded: Tensor, images: Tensor, edge_weight: float) -> Tensor:
    """Absolute and squared error, and the absolute error of neighbouring pixels' differences; images in [-1, 1]."""
    error = decoded - images
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + error.square().mean() + edge_weight * edges


class _Training:
    """The training, from the first step or from a saved state.

    Attributes:
        model: the autoencoder.
        state: file of the unfinished training.
    """

    def __init__(
        self, pictures: Pictures, options: AutoencoderOptions, device: torch.device, state: Path, wanted: dict[str, Any]
    ) -> None:
        self.pictures, self.options, self.device, self.state, self.wanted = pictures, options, device, state, wanted
        self.model = build_autoencoder(options, pictures.size).to(device).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=options.learning_rate, betas=_BETAS)
        self.step = 0

    def restore(self, overwrite: bool) -> None:
        """Goes on from the saved state, if there is one."""
        recover(self.state)
        if not self.state.is_file():
            return
        state = torch.load(self.state, map_location=self.device, weights_only=True)
        if state["wanted"] != self.wanted:
            if overwrite:
                return
            raise FileExistsError(
                f"{self.state} is an unfinished training with other options: give those again, or begin anew with "
                "--overwrite"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def save(self) -> None:
        """Saves what ``restore`` reads."""
        content = io.BytesIO()
        states = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({"wanted": self.wanted, "step": self.step, **states}, content)
        write_whole(self.state, content.getvalue())

    def run(self) -> None:
        """Takes the steps that are left."""
        saved = time.monotonic()
        bar = tqdm(total=self.options.steps, initial=self.step, desc="autoencoder", unit="step", mininterval=0.5)
        torch.backends.cudnn.deterministic = True
        while self.step < self.options.steps:
            loss = self._take_step()
            bar.update()
            if self.step % 50 == 0:
                bar.set_postfix_str(f"loss {float(loss):.4f}")
            if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                self.save()
                saved = time.monotonic()
        bar.close()

    def _take_step(self) -> Tensor:
        options = self.options
        first = self.step * options.batch_size
        batch = torch.from_numpy(self.pictures.batch(first, options.batch_size))
        images = batch.to(self.device).float() / 127.5 - 1
        posterior = self.model.encode(images).latent_dist
        shape = posterior.mean.shape[1:]
        noise = rng.normal(options.seed, "autoencoder-posterior", first, options.batch_size, shape, self.device)
        decoded = self.model.decode(posterior.mean + posterior.std * noise).sample
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        loss = reconstruction_loss(decoded, images, options.edge_weight) + options.kl_weight * kl
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _LARGEST_GRADIENT)
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * _rate(self.step / options.steps)
        self.optimizer.step()
        self.step += 1
        return loss.detach()


def _rate(progress: float) -> float:
    """Share of the highest learning rate at a share of the training: a line up, then a cosine to zero."""
    if progress < _WARM_UP:
        return (progress + 1e-3) / (_WARM_UP + 1e-3)
    return 0.5 + 0.5 * math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP))


@torch.no_grad()
def _judge(
    model: Any, pictures: Pictures, options: AutoencoderOptions, device: torch.device, score: Score | None
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Scores of the decoded means of held-out pictures, and mean and standard deviation of each latent channel.

    The standard deviation is that of samples of the posterior, which a denoiser is trained on.
    """
    images = pictures.held_out(options.scored)
    latents, variances, decoded = [], [], []
    for first in range(0, len(images), _SCORED_AT_ONCE):
        batch = torch.from_numpy(images[first : first + _SCORED_AT_ONCE]).to(device).float() / 127.5 - 1
        posterior = model.encode(batch).latent_dist
        mean = posterior.mean
        latents.append(mean)
        variances.append(posterior.var)
        decoded.append(((model.decode(mean).sample + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
    again = torch.cat(decoded).numpy()
    error = float(np.square((again.astype(np.float64) - images) / 255).mean())
    scores = {"psnr": -10 * math.log10(max(error, 1e-10)), **(score(images, again) if score else {})}
    means, spread = (torch.cat(values).transpose(0, 1).flatten(1) for values in (latents, variances))
    variance = means.var(1) + spread.mean(1)
    scores["empty_channels"] = float((means.var(1) < _EMPTY * variance).sum())
    statistics = {"latents_mean": means.mean(1).tolist(), "latents_std": variance.sqrt().tolist()}
    return {name: round(value, 4) for name, value in scores.items()}, statistics


def _known(out: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = parse_json((out / DESCRIPTION).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return content
