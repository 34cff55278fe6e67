"""A snapshot: prompts -> images -> metrics, at some steps of a run. Every metric reads the same images.

Shapes: N images of a snapshot; images uint8 [N, 3, H, W]; noise [B, C, H, W].
"""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from tqdm import tqdm

from t2ikit.callbacks.ema import EMA
from t2ikit.data.prompts import Prompt, PromptSource, prompts_hash
from t2ikit.diffusion import Guidance
from t2ikit.diffusion.samplers import find_solver
from t2ikit.drawing import draw_batch
from t2ikit.encoders.autoencoders import LatentSpace
from t2ikit.files import write_whole
from t2ikit.metrics.base import Metric, Samples
from t2ikit.module import TextToImage
from t2ikit.pictures import save_grid


class Snapshot(L.Callback):
    """Draws images of the EMA weights and scores them.

    Image i depends on (seed, i, prompt) alone: not on the batch size, nor on the number of ranks. The training state is
    left as it was.

    Args:
        prompts: which texts to draw.
        metrics: what to compute of the images.
        name: prefix of every score; by default the key in the experiment's ``callbacks``.
        every_n_steps: optimizer steps between two snapshots; None takes only start and end.
        at_start: also before the first step of a new run.
        at_end: also after the last step.
        steps: sampler steps.
        method: sampler, see ``t2ikit.diffusion.sample``.
        guidance: classifier-free guidance w, (1 + w) cond - w uncond; or a Guidance.
        batch_size: images drawn at once on each rank.
        seed: key of the noise.
        reference: split whose images the distribution metrics compare with; None if no metric needs them.
        reference_limit: how many of them; None takes all.
        validation_loss: also compute the loss of the validation set (``<name>/loss``).
        grid: number of images in the picture.
        ema_decay: which EMA profile; None takes the first. Without an EMA callback the raw weights are drawn.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(
        self,
        prompts: PromptSource,
        metrics: list[Metric] | None = None,
        name: str = "snapshot",
        every_n_steps: int | None = None,
        at_start: bool = True,
        at_end: bool = True,
        steps: int = 50,
        method: str = "ddim",
        guidance: float | Guidance = 2.0,
        batch_size: int = 64,
        seed: int = 0,
        reference: str | None = None,
        reference_limit: int | None = None,
        validation_loss: bool = False,
        grid: int = 16,
        ema_decay: float | None = None,
    ) -> None:
        super().__init__()
        counts = {"every_n_steps": every_n_steps, "steps": steps, "batch_size": batch_size, "grid": grid}
        for option, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"callbacks.{name}: {option} must be at least 1, got {value}")
        find_solver(method)  # refuses an unknown one
        self.name = name
        self.prompt_source = prompts
        self.metrics = list(metrics or [])
        self.every_n_steps = every_n_steps
        self.at_start = at_start
        self.at_end = at_end
        self.steps = steps
        self.method = method
        self.guidance = guidance
        self.batch_size = batch_size
        self.seed = seed
        self.reference = reference
        self.reference_limit = reference_limit
        self.validation_loss = validation_loss
        self.grid = grid
        self.ema_decay = ema_decay
        self.history: dict[int, dict[str, float]] = {}
        self.evaluation_seconds = 0.0
        self._prompts: list[Prompt] | None = None
        self._states: list[Tensor] = []
        self._reference_images: Tensor | None = None

    @property
    def state_key(self) -> str:
        return f"Snapshot/{self.name}"

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = {int(step): dict(scores) for step, scores in state_dict["history"].items()}

    def validate_experiment(self, experiment: Any) -> None:
        """Refuses an EMA profile that the run does not keep."""
        averages = [callback for callback in experiment.callbacks.values() if isinstance(callback, EMA)]
        if self.ema_decay is not None and not any(self.ema_decay in ema.decays for ema in averages):
            raise ValueError(f"ema_decay {self.ema_decay} is no profile of the EMA callback; add it to its decay")

    # ------------------------------------------------------------------ when

    def on_train_start(self, trainer: L.Trainer, pl_module: TextToImage) -> None:
        self._prepare(trainer)  # what is missing is found now, not at the first snapshot
        if isinstance(pl_module.space, LatentSpace):
            _ = pl_module.space.model
        if self.at_start and trainer.global_step == 0:
            self.run(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: TextToImage, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        last = step == trainer.max_steps and self.at_end
        due = self.every_n_steps is not None and step > 0 and step % self.every_n_steps == 0
        if (due or last) and step not in self.history:
            self.run(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: TextToImage) -> None:
        if self.at_end and trainer.global_step not in self.history:
            self.run(trainer, pl_module)

    # ------------------------------------------------------------------ what

    def run(self, trainer: L.Trainer, pl_module: TextToImage) -> dict[str, float]:
        """One snapshot of the present weights: draws, scores, logs, writes grid and scores; returns the scores."""
        started = time.perf_counter()
        self._prepare(trainer)
        assert self._prompts is not None
        step = trainer.global_step
        with self._weights(trainer, pl_module):
            images = self._draw_all(trainer, pl_module)
            loss = self._loss(trainer, pl_module) if self.validation_loss else None
        scores: dict[str, float] = {} if loss is None else {"loss": loss}
        samples = Samples(
            images,
            [prompt.text for prompt in self._prompts],
            [prompt.metadata for prompt in self._prompts],
            self._reference_images,
            self.reference or "",
        )
        if trainer.is_global_zero:
            for metric in self.metrics:
                for score, value in metric.compute(samples):
                    if score in scores:
                        raise ValueError(f"callbacks.{self.name}: two metrics give {score}; use two snapshots")
                    scores[score] = float(value)  # plain numbers only: they go into every checkpoint
        scores = trainer.strategy.broadcast(scores)
        self.history[step] = scores
        self._write(trainer, step, samples, scores)
        self.evaluation_seconds += time.perf_counter() - started
        return scores

    def _prepare(self, trainer: L.Trainer) -> None:
        """Prompts, their text states and the reference images are the same at every step: read once."""
        if self._prompts is not None:
            return
        data = trainer.datamodule
        prompts = self.prompt_source.prompts(data)
        self._states = self.prompt_source.states(data, prompts)
        if self.reference is not None:
            self._reference_images = data.reference_images(self.reference, self.reference_limit)
        self._prompts = prompts

    def _weights(self, trainer: L.Trainer, pl_module: TextToImage) -> AbstractContextManager[None]:
        ema = _ema_of(trainer)
        return nullcontext() if ema is None else ema.applied(pl_module, self.ema_decay)

    def _draw_all(self, trainer: L.Trainer, pl_module: TextToImage) -> Tensor:
        """All N images on every rank, uint8 [N, 3, H, W]; each rank draws every world_size-th batch."""
        assert self._prompts is not None
        starts = range(0, len(self._prompts), self.batch_size)
        mine = list(starts)[trainer.global_rank :: trainer.world_size]
        drawn: dict[int, Tensor] = {}
        bar = tqdm(
            total=len(mine) * self.steps,
            desc=f"{self.name}: drawing",
            leave=False,
            disable=not trainer.is_global_zero,
            mininterval=1.0,
        )
        with bar:
            for start in mine:
                drawn[start] = draw_batch(
                    pl_module,
                    self._states[start : start + self.batch_size],
                    start,
                    seed=self.seed,
                    steps=self.steps,
                    method=self.method,
                    guidance=self.guidance,
                    bf16=_is_bf16(pl_module),
                    progress=lambda done, total: bar.update(1),
                )
        if trainer.world_size > 1:
            gathered: list[dict[int, Tensor]] = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(gathered, drawn)
            drawn = {start: images for part in gathered for start, images in part.items()}
        return torch.cat([drawn[start] for start in starts])

    def _loss(self, trainer: L.Trainer, pl_module: TextToImage) -> float:
        """Mean loss of the validation set, every record once, summed over the ranks."""
        total = torch.zeros(2, dtype=torch.float64, device=pl_module.device)
        with torch.autocast(pl_module.device.type, dtype=torch.bfloat16, enabled=_is_bf16(pl_module)):
            for stored in trainer.datamodule.val_dataloader():
                loss_B, _ = pl_module.validation_losses(stored.to(pl_module.device))
                total += torch.stack([loss_B.double().sum(), torch.full_like(total[0], loss_B.shape[0])])
        total = trainer.strategy.reduce(total, reduce_op="sum")
        return float(total[0] / total[1])

    # ------------------------------------------------------------------ where it goes

    def fingerprint(self, trainer: L.Trainer, samples: Samples) -> dict[str, Any]:
        """Everything a score of this snapshot depends on besides the values of the weights."""
        assert self._prompts is not None
        ema = _ema_of(trainer)
        return {
            "weights": "raw" if ema is None else f"ema {self.ema_decay or ema.decays[0]}",
            "precision": str(trainer.precision),
            "prompts": prompts_hash(self._prompts),
            "seed": self.seed,
            "sampler": self.method,
            "steps": self.steps,
            "guidance": self.guidance if isinstance(self.guidance, (int, float)) else repr(self.guidance),
            "metrics": {type(metric).__name__: metric.fingerprint_of(samples) for metric in self.metrics},
        }

    def _write(self, trainer: L.Trainer, step: int, samples: Samples, scores: dict[str, float]) -> None:
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "samples" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        picture = save_grid(samples.images[: self.grid], folder / f"step-{step:08d}.png")
        record = {"step": step, "scores": scores, "fingerprint": self.fingerprint(trainer, samples)}
        write_whole(folder / f"step-{step:08d}.json", json.dumps(record, indent=2))
        captions = folder / "prompts.txt"
        if not captions.exists():
            write_whole(captions, "\n".join(prompt.text for prompt in (self._prompts or [])[: self.grid]) + "\n")
        for logger in trainer.loggers:
            logger.log_metrics({f"{self.name}/{key}": value for key, value in scores.items()}, step=step)
            add_image = getattr(getattr(logger, "experiment", None), "add_image", None)
            if add_image is not None:
                add_image(f"{self.name}/grid", picture, global_step=step)


def _is_bf16(pl_module: TextToImage) -> bool:
    return str(pl_module.trainer.precision).startswith("bf16")


def _ema_of(trainer: L.Trainer) -> EMA | None:
    return next((callback for callback in trainer.callbacks if isinstance(callback, EMA)), None)
