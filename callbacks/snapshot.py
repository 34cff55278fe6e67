"""A snapshot: prompts -> images -> metrics, at some steps of a run. Every metric reads the same images.

An ``Evaluation`` samples and scores; the callback decides when, with which weights, and where the results go:

    samples/NAME/step-00000500.png                    a grid of the first images
    samples/NAME/scores/step-00000500/SCORE.json      every score with its fingerprint
    samples/NAME/details/step-00000500/               what the scores were made of: verdicts, answers
    samples/NAME/step-00000500/                       all images, with ``keep_images``
    samples/NAME/step-00000500.sampling/               unfinished images: an interrupted snapshot continues with them
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from t2ikit import ranks
from t2ikit.callbacks.ema import EMA
from t2ikit.diffusion import Guidance
from t2ikit.diffusion.samplers import find_solver
from t2ikit.encoders.autoencoders import LatentSpace
from t2ikit.evaluation import Evaluated, Evaluation
from t2ikit.evaluation.sampling import Sampling
from t2ikit.files import write_whole
from t2ikit.metrics.base import Metric
from t2ikit.metrics.fingerprint import write_files, write_scores
from t2ikit.module import TextToImage
from t2ikit.pictures import save_grid
from t2ikit.prompts import PromptSource


class Snapshot(L.Callback):
    """Samples images with the EMA weights and scores them.

    Image i depends on (seed, i, prompt) alone: not on the batch size, nor on the number of ranks. The training state is
    left as it was.

    Args:
        prompts: which texts to sample.
        metrics: what to compute from the images.
        name: prefix of every score; by default the key in the experiment's ``callbacks``.
        every_n_steps: optimizer steps between two snapshots; None takes only start and end.
        at_start: also before the first step of a new run.
        at_end: also after the last step.
        steps: sampler steps.
        method: sampler, see ``t2ikit.diffusion.sample``.
        guidance: classifier-free guidance w, (1 + w) cond - w uncond; or a Guidance.
        batch_size: images sampled at once on each rank.
        seed: key of the noise.
        reference: split whose images the distribution metrics compare with; "prompts" for the photos that the prompts
            describe (CocoCaptions); None if no metric needs them.
        reference_limit: how many of them; None takes all.
        validation_loss: also compute the loss of the validation set (``<name>/loss``).
        grid: number of images in the picture.
        ema_decay: which EMA profile; None takes the first. Without an EMA callback the raw weights sample.
        keep_images: keep every image as a PNG file, in the layout of the prompt source (that of its benchmark).

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
        keep_images: bool = False,
    ) -> None:
        super().__init__()
        counts = {"every_n_steps": every_n_steps, "steps": steps, "batch_size": batch_size, "grid": grid}
        for option, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"callbacks.{name}: {option} must be at least 1, got {value}")
        find_solver(method)  # refuses an unknown one
        self.name = name
        self.every_n_steps = every_n_steps
        self.at_start = at_start
        self.at_end = at_end
        self.sampling = Sampling(steps, method, guidance, seed, batch_size)
        self.evaluation = Evaluation(name, prompts, metrics or [], reference, reference_limit, validation_loss)
        self.grid = grid
        self.ema_decay = ema_decay
        self.keep_images = keep_images
        self.history: dict[int, dict[str, float]] = {}
        self.evaluation_seconds = 0.0

    @property
    def metrics(self) -> Sequence[Metric]:
        """What is computed of the images."""
        return self.evaluation.metrics

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
        # Missing prompts, text encoders or references end the run now, not at the first snapshot.
        self.evaluation.prepare(trainer.datamodule, pl_module.device)
        if isinstance(pl_module.space, LatentSpace):
            _ = pl_module.space.model
        step = trainer.global_step
        interrupted = step > 0 and self._due(step) and step not in self.history
        if interrupted or (self.at_start and step == 0):
            self.run(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: TextToImage, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        last = step == trainer.max_steps and self.at_end
        if (self._due(step) or last) and step not in self.history:
            self.run(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: TextToImage) -> None:
        if self.at_end and trainer.global_step not in self.history:
            self.run(trainer, pl_module)

    def _due(self, step: int) -> bool:
        return self.every_n_steps is not None and step > 0 and step % self.every_n_steps == 0

    # ------------------------------------------------------------------ what

    def run(self, trainer: L.Trainer, pl_module: TextToImage) -> dict[str, float]:
        """One snapshot of the present weights: samples, scores, writes and logs; returns the scores.

        Everything global is left as it was: weights, their mode, and the random state of torch, NumPy and Python.
        """
        started = time.perf_counter()
        step = trainer.global_step
        ema = _ema_of(trainer)
        weights = "raw" if ema is None else f"ema {self.ema_decay or ema.decays[0]}"
        with isolate_rng(), self._weights(ema, pl_module):
            evaluated = self.evaluation.evaluate(
                pl_module,
                trainer.datamodule,
                replace(self.sampling, precision=str(trainer.precision)),
                self.folder(trainer) / f"{_label(step)}.sampling",
                weights=weights,
                step=step,
            )
        scores = {score.name: score.value for score in evaluated.scores}  # plain numbers: they go into every checkpoint
        self.history[step] = scores
        ranks.from_first(lambda: self._publish(trainer, step, evaluated, weights))
        self.evaluation_seconds += time.perf_counter() - started
        return scores

    def _weights(self, ema: EMA | None, pl_module: TextToImage) -> AbstractContextManager[None]:
        return nullcontext() if ema is None else ema.applied(pl_module, self.ema_decay)

    # ------------------------------------------------------------------ where it goes

    def folder(self, trainer: L.Trainer) -> Path:
        """Of all results of this snapshot."""
        return Path(trainer.default_root_dir) / "samples" / self.name

    def scores_folder(self, trainer: L.Trainer, step: int) -> Path:
        """Of the score files of one step."""
        return self.folder(trainer) / "scores" / _label(step)

    def write(
        self, evaluated: Evaluated, facts: dict[str, Any] | None, grid: Path, images: Path, details: Path, scores: Path
    ) -> Tensor:
        """Writes what an evaluation gave; for the first rank.

        Args:
            evaluated: scores and images.
            facts: how the images were made, for their metadata; None writes the grid but not every image.
            grid: file for the first images in one picture.
            images: folder for every image.
            details: folder for verdicts and answers of the metrics.
            scores: folder for the scores.

        Returns:
            The picture of the grid.
        """
        assert evaluated.images is not None
        grid.parent.mkdir(parents=True, exist_ok=True)
        picture = save_grid(evaluated.images[: self.grid], grid)
        if facts is not None:
            self.evaluation.keep_images(images, evaluated.images, facts)
        write_files(details, evaluated.files)
        write_scores(scores, evaluated.scores)
        return picture

    def _publish(self, trainer: L.Trainer, step: int, evaluated: Evaluated, weights: str) -> None:
        """Writes the files of a snapshot, removes its unfinished images, and logs scores, seconds and grid."""
        folder, label, prompts = self.folder(trainer), _label(step), self.evaluation.prompts
        facts = {**self.sampling.conditions(), "weights": weights, "step": step}
        picture = self.write(
            evaluated,
            facts if self.keep_images else None,
            grid=folder / f"{label}.png",
            images=folder / label,
            details=folder / "details" / label,
            scores=self.scores_folder(trainer, step),
        )
        write_whole(folder / "prompts.txt", "\n".join(prompt.text for prompt in prompts[: self.grid]) + "\n")
        for unfinished in folder.glob("step-*.sampling"):  # of this step or an earlier one, which no run samples again
            if int(re.sub(r"\D", "", unfinished.name)) <= step:
                shutil.rmtree(unfinished, ignore_errors=True)
        values = {f"{self.name}/{score.name}": score.value for score in evaluated.scores}
        for cost in evaluated.costs:
            key = f"{self.name}/seconds/{cost.what}"
            values[key] = values.get(key, 0.0) + cost.seconds
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)
            add_image = getattr(getattr(logger, "experiment", None), "add_image", None)
            if add_image is not None:
                add_image(f"{self.name}/grid", picture, global_step=step)


def _label(step: int) -> str:
    return f"step-{step:08d}"


def _ema_of(trainer: L.Trainer) -> EMA | None:
    return next((callback for callback in trainer.callbacks if isinstance(callback, EMA)), None)
