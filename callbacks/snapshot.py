"""A snapshot: prompts -> images -> metrics, at some steps of a run. Every metric reads the same images.

An ``Evaluation`` samples and scores; the callback decides when, with which weights, and where the results go:

    samples/NAME/step-00000500.png                    a grid of the first images
    samples/NAME/scores/step-00000500/SCORE.json      every score with its fingerprint
    samples/NAME/details/step-00000500/               what the scores were made of: verdicts, answers
    samples/NAME/step-00000500/                       all images, with ``keep_images``
    samples/NAME/step-00000500.sampling/               unfinished images: an interrupted snapshot continues with them
    samples/NAME/overfitting.png, overfitting.json    see ``overfitting_alarm``; with ``overfitting``
    samples/NAME/newest.json                           what the newest snapshot gave, and a hash of what it depends on

The checkpoint of a step is written before its snapshot. A run that goes on from it takes the snapshot first; or what
``newest.json`` says, if that snapshot was finished with the very same weights and settings.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from t2ikit import ranks
from t2ikit.callbacks.logged_grids import log_grid
from t2ikit.callbacks.monitors import look
from t2ikit.callbacks.overfitting_alarm import judge, log_pairs
from t2ikit.checkpoints.runs import find_checkpoint
from t2ikit.denoisers import SavedDenoiser
from t2ikit.diffusion import Guidance
from t2ikit.diffusion.processes import Threshold
from t2ikit.diffusion.samplers import find_solver
from t2ikit.diffusion.solvers import Solver
from t2ikit.evaluation import Evaluated, Evaluation, Overfitting, Search
from t2ikit.evaluation.image_store import IDENTITY, identity_text
from t2ikit.evaluation.settings import Sampling
from t2ikit.files import below, parse_json, write_whole
from t2ikit.metrics.base import Metric
from t2ikit.metrics.fingerprint import write_files, write_scores
from t2ikit.module import TextToImage
from t2ikit.pictures import save_grid
from t2ikit.prompts import PromptSource

_NEWEST = "newest.json"


class Snapshot(L.Callback):
    """Samples images with the averaged weights, or the raw ones where none are averaged, and scores them.

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
        method: sampler, see ``t2ikit.diffusion.sample``; a class of your own by its class path.
        guidance: classifier-free guidance w, (1 + w) cond - w uncond; or a Guidance.
        batch_size: images sampled at once on each rank.
        seed: key of the noise.
        reference: split whose images the distribution metrics compare with; "prompts" for the photos that the prompts
            describe (CocoCaptions); None if no metric needs them.
        reference_limit: how many of them; None takes all.
        validation_loss: also compute losses of the validation set: ``<name>/loss``, and the one that compares runs,
            ``<name>/loss_fixed_t``, with ``<name>/loss_fixed_t_train`` of as many training records.
        grid: number of images in the picture.
        ema_decay: which EMA profile; None takes the first. Without an EMA callback the raw weights sample.
        keep_images: keep every image as a PNG file, in the layout of the prompt source (that of its benchmark).
        search: sample candidates of every image, of which a verifier chooses, see ``t2ikit.evaluation.Search``.
        overfitting: watch whether the training images are learned by heart, see ``t2ikit.evaluation.Overfitting``; the
            reference must be held-out images. Brings the losses of ``validation_loss``.
        threshold: bound on the sampler's estimates of x_0: ``[clamp, c]``, ``[dynamic, q]``, ``[per_channel, q]`` or
            ``none``; by default that of the image space, and none for a rectified flow.

    Raises:
        ValueError: a number below 1, or an unknown threshold.
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
        method: Solver | str = "ddim",
        guidance: float | Guidance = 2.0,
        batch_size: int = 64,
        seed: int = 0,
        reference: str | None = None,
        reference_limit: int | None = None,
        validation_loss: bool = False,
        grid: int = 16,
        ema_decay: float | None = None,
        keep_images: bool = False,
        search: Search | None = None,
        overfitting: Overfitting | None = None,
        threshold: Threshold | None = None,
    ) -> None:
        super().__init__()
        counts = {"every_n_steps": every_n_steps, "steps": steps, "batch_size": batch_size, "grid": grid}
        for option, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"callbacks.{name}: {option} must be at least 1, got {value}")
        below(Path("samples"), name)  # refuses a name that leads out of the run's folder
        find_solver(method)  # refuses an unknown one
        self.name = name
        self.every_n_steps = every_n_steps
        self.at_start = at_start
        self.at_end = at_end
        self.sampling = Sampling(steps, method, guidance, seed, batch_size, search=search, threshold=threshold)
        self.evaluation = Evaluation(
            name, prompts, metrics or [], reference, reference_limit, validation_loss, overfitting=overfitting
        )
        self.grid = grid
        self.ema_decay = ema_decay
        self.keep_images = keep_images
        self.history: dict[int, dict[str, float]] = {}

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
        """Refuses a module that samples no images, and a weaker network whose checkpoint is missing."""
        kit = getattr(experiment.model, "evaluation_kit", lambda: None)()
        if kit is None:
            raise ValueError(f"{type(experiment.model).__name__} samples no images; leave this snapshot out")
        weaker = self.sampling.guidance.weaker if isinstance(self.sampling.guidance, Guidance) else None
        if isinstance(weaker, SavedDenoiser):
            key = f"callbacks.{self.name}.init_args.guidance.init_args.weaker.checkpoint"
            find_checkpoint(Path(weaker.checkpoint), key)

    # ------------------------------------------------------------------ when

    def on_train_start(self, trainer: L.Trainer, pl_module: TextToImage) -> None:
        # Missing averages, prompts, text encoders or references end the run now, not at the first snapshot.
        kept = [] if pl_module.averages is None else pl_module.averages.decays
        if self.ema_decay is not None and self.ema_decay not in kept:
            raise ValueError(
                f"callbacks.{self.name}: ema_decay {self.ema_decay} is no profile of the EMA callback; add it there"
            )
        self.evaluation.prepare(trainer.datamodule, pl_module.device)
        self.evaluation.check_search(self.sampling)
        pl_module.space.load()
        self.sampling = self.sampling.filled(pl_module.device, pl_module.origins)
        pl_module.run_log.scores[self.name] = self.history
        step = trainer.global_step
        if step in self.history or (step > 0 and self._known(trainer, pl_module)):
            return
        if self._due(step) or (self.at_start and step == 0):
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
        with isolate_rng(), pl_module.averaged(self.ema_decay):
            evaluated = self.evaluation.evaluate(
                pl_module,
                trainer.datamodule,
                self._sampling(trainer),
                self.folder(trainer) / f"{_label(step)}.sampling",
                weights=self._weights(pl_module),
                step=step,
            )
        scores = {score.name: score.value for score in evaluated.scores}  # plain numbers: they go into every checkpoint
        values = self._values(evaluated)
        identity = ranks.from_first(lambda: self._publish(trainer, step, evaluated, self._weights(pl_module)))
        self._take(trainer, pl_module, step, scores, values)
        known = json.dumps({"step": step, "identity_sha256": identity, "scores": scores, "values": values})
        ranks.from_first(lambda: write_whole(self.folder(trainer) / _NEWEST, known))
        pl_module.run_log.evaluation_seconds += time.perf_counter() - started
        return scores

    def _take(
        self,
        trainer: L.Trainer,
        pl_module: TextToImage,
        step: int,
        scores: dict[str, float],
        values: dict[str, float],
    ) -> None:
        """Keeps the scores of a step, logs values, and has other callbacks look at them."""
        self.history[step] = scores
        if (watch := self.evaluation.overfitting) is not None:
            values |= judge(trainer, watch, self.name, self.history, self.folder(trainer))
        pl_module.run_log.log(trainer, values, step)
        look(trainer, pl_module, values, [entry.name for entry in trainer.callbacks if isinstance(entry, Snapshot)])

    def _known(self, trainer: L.Trainer, pl_module: TextToImage) -> bool:
        """Takes what the newest snapshot gave, if it is that of this step, of the same weights and settings.

        The folder of its scores must be there: nothing else would write the files of this step.
        """
        path = self.folder(trainer) / _NEWEST

        def of_this_step() -> dict[str, Any] | None:
            known: dict[str, Any] = parse_json(path.read_text()) if path.is_file() else {}
            if known.get("step") != trainer.global_step:
                return None
            if known["scores"] and not scores_folder(trainer, self.name, trainer.global_step).is_dir():
                return None
            with pl_module.averaged(self.ema_decay):
                identity = identity_text(self.evaluation.identity(pl_module, self._sampling(trainer)))
            return known if known["identity_sha256"] == self._identity_sha256(identity) else None

        known = ranks.from_first(of_this_step)
        if known is None:
            return False
        self._take(trainer, pl_module, trainer.global_step, known["scores"], known["values"])
        return True

    def _identity_sha256(self, images: str) -> str:
        """Of what the images depend on, as its file says it, and of what is scored of them; for the first rank."""
        return hashlib.sha256((images + json.dumps(self.evaluation.settings(), sort_keys=True)).encode()).hexdigest()

    def _sampling(self, trainer: L.Trainer) -> Sampling:
        return replace(self.sampling, precision=str(trainer.precision))

    def _weights(self, pl_module: TextToImage) -> str:
        """Which weights are sampled, for the fingerprints."""
        averages = pl_module.averages
        if averages is None:
            return "raw"
        return f"ema {averages.decays[0] if self.ema_decay is None else self.ema_decay}"

    def _values(self, evaluated: Evaluated) -> dict[str, float]:
        """What is logged: scores, and the seconds of each part of the work."""
        values = {f"{self.name}/{score.name}": score.value for score in evaluated.scores}
        for cost in evaluated.costs:
            key = f"{self.name}/seconds/{cost.what}"
            values[key] = values.get(key, 0.0) + cost.seconds
        return values

    # ------------------------------------------------------------------ where it goes

    def folder(self, trainer: L.Trainer) -> Path:
        """Of all results of this snapshot."""
        return Path(trainer.default_root_dir) / "samples" / self.name

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
        grid.parent.mkdir(parents=True, exist_ok=True)
        picture = save_grid(evaluated.images[: self.grid], grid)
        if facts is not None:
            self.evaluation.keep_images(images, evaluated.images, facts)
        write_files(details, evaluated.files)
        write_scores(scores, evaluated.scores)
        return picture

    def _publish(self, trainer: L.Trainer, step: int, evaluated: Evaluated, weights: str) -> str:
        """Writes the files of a snapshot, removes unfinished images, shows the grid; the SHA-256 of its identity."""
        folder, label, prompts = self.folder(trainer), _label(step), self.evaluation.prompts
        identity = self._identity_sha256((folder / f"{label}.sampling" / IDENTITY).read_text())
        facts = {**self.sampling.conditions(), "weights": weights, "step": step}
        picture = self.write(
            evaluated,
            facts if self.keep_images else None,
            grid=folder / f"{label}.png",
            images=folder / label,
            details=folder / "details" / label,
            scores=scores_folder(trainer, self.name, step),
        )
        write_whole(folder / "prompts.txt", "\n".join(prompt.text for prompt in prompts[: self.grid]) + "\n")
        for unfinished in folder.glob("step-*.sampling"):  # of this step or an earlier one, which no run samples again
            if int(re.sub(r"\D", "", unfinished.name)) <= step:
                shutil.rmtree(unfinished, ignore_errors=True)
        texts = [prompt.text for prompt in prompts[: self.grid]]
        for logger in trainer.loggers:
            log_grid(logger, self.name, picture, texts, step)
        log_pairs(trainer, self.name, evaluated.files, step)
        return identity


def _label(step: int) -> str:
    return f"step-{step:08d}"


def scores_folder(trainer: L.Trainer, name: str, step: int) -> Path:
    """Of the score files of one step of the snapshot ``name``."""
    return Path(trainer.default_root_dir) / "samples" / name / "scores" / _label(step)
