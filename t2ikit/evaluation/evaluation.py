"""Prompts -> images -> metrics -> scores, with no Trainer: what a snapshot of a run and ``t2ikit evaluate`` both do.

Shapes: N images of an evaluation, uint8 [N, 3, H, W].
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import t2ikit
from t2ikit import ranks
from t2ikit.batch import Texts
from t2ikit.data.datamodule import DataModule
from t2ikit.encoders.limits import with_remarks
from t2ikit.encoders.text import encode_prompts, load_encoder
from t2ikit.evaluation.image_store import ImageStore
from t2ikit.evaluation.overfitting import GAP, LESS_IS_BETTER, Overfitting
from t2ikit.evaluation.reference_images import ReferenceImages, real_images
from t2ikit.evaluation.sampling import identity_of, sample_missing
from t2ikit.evaluation.scoring import Cost, exact, measured, score_name, score_samples, write_references
from t2ikit.evaluation.selection import Selection
from t2ikit.evaluation.settings import Sampling
from t2ikit.evaluation.validation import SCORES, LevelLosses, validation_losses
from t2ikit.files import partial_of, publish, recover
from t2ikit.metrics.base import Metric, Samples, reference_of, samples_of
from t2ikit.metrics.distribution.training_copies import TrainingCopies
from t2ikit.metrics.fingerprint import Score
from t2ikit.module import TextToImage
from t2ikit.pictures import Images
from t2ikit.prompts import Prompt, PromptSource, prompts_hash

MODEL_FIELDS = ("seeds", "sampler", "steps", "guidance", "precision", "weights", "search")
"""Fields of a fingerprint that describe the model's side; they are not known of pictures of another program."""


def is_of_images(name: str) -> bool:
    """Whether a score of that name is of sampled images, and not of losses, which have no sampler."""
    return name not in SCORES and not name.startswith(GAP)


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation gave.

    Attributes:
        scores: every score, on all ranks.
        costs: of sampling, of the validation loss and of each metric, as they were on this rank.
        images: uint8 [N, 3, H, W], on disk; they can be read as long as their folder is there.
        files: what the scores were computed from (verdicts, answers), name -> content, on the first rank.
    """

    scores: list[Score]
    costs: list[Cost]
    images: Images
    files: dict[str, bytes]


@dataclass(eq=False)
class Evaluation:
    """Samples images of a model and scores them, or scores pictures of any model. All ranks call the same methods.

    Image i depends on (seed, i, prompt) and the weights alone: not on the batch size, nor on the number of ranks. All
    ranks sample the images into a folder; then each looks at a share of them, and the first one sums up, so that a
    score does not depend on the ranks either.

    Attributes:
        name: of the snapshot, for progress bars and messages.
        source: the texts of the images.
        metrics: what to compute of the images.
        reference: split whose images the distribution metrics compare with; "prompts" for the photos that the prompts
            describe (CocoCaptions), cropped and resized to the size of the samples; None if no metric needs them.
        reference_limit: how many of them; None takes all.
        validation_loss: also compute losses of the validation set, see :func:`validation_losses`.
        limit: take the first prompts only; None takes all.
        overfitting: also compare with the training images, by losses and by copies; None does not.
        prompts: known after ``prepare``.
    """

    name: str
    source: PromptSource
    metrics: Sequence[Metric] = ()
    reference: str | None = None
    reference_limit: int | None = None
    validation_loss: bool = False
    limit: int | None = None
    overfitting: Overfitting | None = None
    prompts: list[Prompt] = field(default_factory=list, init=False)
    _states: Sequence[Texts] | None = field(default=None, init=False)
    _reference: ReferenceImages | None = field(default=None, init=False)
    _copies: TrainingCopies | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.validation_loss = self.validation_loss or self.overfitting is not None

    def prepare(self, data: DataModule, device: torch.device | str = "cpu", samples: bool = True) -> None:
        """Reads prompts, text states and reference images; they are kept, being the same for every checkpoint.

        Args:
            data: the data module, set up.
            device: where a text encoder runs for the states of prompts that are not stored; it leaves it afterwards.
            samples: also the text states, which sampling needs.

        Raises:
            ValueError, FileNotFoundError: what is missing, and which option names it.
        """
        if not self.prompts:
            self.source = self.source.with_data(data)
            prompts = self.source.prompts()[: self.limit]
            if not prompts:
                raise ValueError(f"callbacks.{self.name}: {type(self.source).__name__} gives no prompt")
            if self.reference is not None:
                self._reference = ReferenceImages(self.reference, self.reference_limit, self.source, data)
            self._watch_copies(data)
            ranks.from_first(lambda: self._check(prompts))
            self.prompts = prompts
        if samples and self._states is None:
            self._states = self.source.states(self.prompts, lambda texts: encode(texts, data, device))

    def evaluate(
        self,
        module: TextToImage,
        data: DataModule,
        sampling: Sampling,
        folder: Path,
        *,
        weights: str,
        step: int | None,
    ) -> Evaluated:
        """Samples the images with the present weights of ``module`` and scores them.

        Args:
            module: on its device, with the empty prompt.
            data: the data module, set up.
            sampling: steps, method, guidance, seed, batch size.
            folder: where the images go while they are sampled; the same for all ranks. Images of an interrupted call
                with the same weights and settings are used. Remove the folder with ``discard`` when the scores are
                written.
            weights: which weights those are ("ema 0.9999", "raw"), for the fingerprint.
            step: optimizer steps of the weights.

        Raises:
            OtherRankFailed: another rank failed.
        """
        self.prepare(data, module.device)
        self.check_search(sampling)
        assert self._states is not None
        store, costs = ImageStore(folder, len(self.prompts)), list[Cost]()
        scores, of_losses = [], dict[str, bytes]()
        if self.validation_loss:
            levels: LevelLosses | None = None if self.overfitting is None else {}
            with measured("loss", costs):
                scores += validation_losses(module, data, sampling, weights, step, self.name, levels)
            if self.overfitting is not None and levels is not None:
                gaps, of_losses = self.overfitting.gaps(levels, scores, data, module.process, step)
                scores += gaps
        with measured("sampling", costs):
            sample_missing(module, self._states, sampling, store, self.name, self.prompts)
        images = ranks.from_first(store.images)
        conditions = {**sampling.conditions(), "weights": weights}
        of_metrics, files = self._score(images, module.device, conditions, step, costs)
        scores += of_metrics
        files |= of_losses if ranks.this() == 0 else {}
        if (search := sampling.search) is not None:
            evaluations, name = sampling.network_evaluations(module.process), search.score_name(self.prompts[0])
            selection = Selection(search, self.prompts, ranks.from_first(store.values), evaluations, name)
            known = {score.name for score in scores}  # of the verifier itself, named as selection
            scores += [
                score for score in selection.scores(self.conditions(conditions), step) if score.name not in known
            ]
            files |= ranks.from_first(lambda: selection.files(store.firsts(), images))
            if ranks.this() == 0:
                tqdm.write(f"{self.name}: {selection}")
        return Evaluated(scores, costs, images, files)

    def check_search(self, sampling: Sampling) -> None:
        """Has the search, if there is one, refuse a verifier that cannot choose or is a metric; after :meth:`prepare`.

        Raises:
            ValueError: what to change.
        """
        if (search := sampling.search) is not None:
            ranks.from_first(lambda: search.check(self.prompts, self.metrics, f"callbacks.{self.name}"))

    def identity(self, module: TextToImage, sampling: Sampling) -> dict[str, Any]:
        """What the images of the present weights depend on, see :func:`identity_of`; after :meth:`prepare`."""
        assert self._states is not None
        return identity_of(module, self._states, sampling, self.prompts)

    def settings(self) -> dict[str, Any]:
        """What decides the scores besides the images and the data, JSON-able; after :meth:`prepare`."""
        watch = self.overfitting
        return {
            "prompts_sha256": prompts_hash(self.prompts),
            "metrics": [[type(metric).__name__, metric.name, metric.fingerprint()] for metric in self.metrics],
            "reference": self.reference,
            "reference_limit": self.reference_limit,
            "validation_loss": self.validation_loss,
            "overfitting": None if watch is None else watch.train,
        }

    def evaluate_pictures(self, folder: Path, data: DataModule, device: torch.device | None = None) -> Evaluated:
        """Scores pictures of any model, one for each prompt, in the layout of the prompt source.

        Args:
            folder: where they are.
            data: the data module, set up.
            device: where the networks of the metrics run; None is the CPU.

        Raises:
            ValueError: the pictures do not fit the prompts.
            OtherRankFailed: another rank failed.
        """
        self.prepare(data, samples=False)
        costs: list[Cost] = []
        images = ranks.from_first(lambda: self.source.read_images(folder, self.prompts))
        scores, files = self._score(images, device or torch.device("cpu"), {}, None, costs)
        return Evaluated(scores, costs, images, files)

    def keep_images(self, folder: Path, images: Images, facts: dict[str, Any]) -> None:
        """Writes images as PNG files in the layout of the prompt source; replaces an older folder when all are there.

        Args:
            folder: for these images alone.
            images: of these prompts, uint8 [N, 3, H, W].
            facts: how they were made, for the metadata of each file.
        """
        text = {key: str(value) for key, value in facts.items()} | {"Software": f"t2ikit {t2ikit.__version__}"}
        recover(folder)
        partial = partial_of(folder)
        partial.mkdir(parents=True)
        self.source.write_images(partial, images, self.prompts, text)
        shutil.rmtree(folder, ignore_errors=True)
        publish(partial, folder)

    def less_is_better(self, name: str) -> bool:
        """Whether a smaller value of a score is better, as its metric says; known before :meth:`prepare` too."""
        of_metrics = {score_name(metric, score) for metric in self.metrics for score in metric.less_is_better}
        return name in {*SCORES, *of_metrics} or (self.overfitting is not None and name.startswith(LESS_IS_BETTER))

    def write_reference(self, folder: Path, data: DataModule, device: torch.device) -> dict[Path, list[str]]:
        """Writes the statistics of the reference set, for the ``reference_statistics`` of the metrics.

        Args:
            folder: gets ``NETWORK.npz`` for each network of the metrics, see :func:`write_references`.
            data: the data module, set up.
            device: where the networks run.

        Returns:
            File -> the metrics that can read it.

        Raises:
            ValueError: the snapshot has no reference, or no metric without a file compares with one.
        """
        self.prepare(data, samples=False)
        if self._reference is None:
            raise ValueError(f"callbacks.{self.name} has no reference: set its reference to a split of the data (val)")
        size = real_images(data, "val", 1).shape[-1]
        none = Samples(torch.empty(0, 3, size, size, dtype=torch.uint8))
        none.reference = self._reference.samples(size, device)
        files = write_references(folder, none, self.metrics)
        if not files:
            raise ValueError(
                f"callbacks.{self.name}: no metric compares with the reference images; DistributionMetrics, CMMD and "
                "KID do, where they have no reference_statistics"
            )
        return files

    def conditions(self, sampling: dict[str, Any]) -> dict[str, Any]:
        """What the fingerprint of every score of the images will hold, besides what its metric adds.

        Args:
            sampling: how the images are sampled.
        """
        name = self.source.name or type(self.source).__name__
        return {"prompts": name, "prompts_sha256": prompts_hash(self.prompts), **sampling}

    def _watch_copies(self, data: DataModule) -> None:
        """Adds the metric of the copies, where overfitting is watched; every rank must call it."""
        if self.overfitting is not None and self._copies is None:
            made: list[TrainingCopies] = []
            watch, label = self.overfitting, f"callbacks.{self.name}"
            ranks.together(lambda: made.append(watch.metric(label, self.metrics, self.reference, data)))
            self._copies = made[0]
            self.metrics = [*self.metrics, self._copies]

    def _check(self, prompts: Sequence[Prompt]) -> None:
        """Has every metric refuse what it cannot score, before anything is sampled.

        Raises:
            ValueError: what a metric lacks: samples, a package, or weights.
        """
        blank = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
        samples = samples_of(blank.expand(len(prompts), -1, -1, -1), prompts)
        samples.remedy = self.source.remedy or samples.remedy
        if self._reference is not None:
            blank = blank.expand(len(self._reference), -1, -1, -1)
            samples.reference = reference_of(blank, metadata=self._reference.metadata)
        for metric in self.metrics:
            names = metric.less_is_better
            if isinstance(names, str) or not isinstance(names, Collection):
                raise ValueError(
                    f"callbacks.{self.name}: less_is_better of {metric.title} must list the names of its scores of "
                    f"which a smaller value is better, such as ('distance',); got {names!r}"
                )
            try:
                metric.check(samples)
                metric.fingerprint()  # reads the weights, without which the first snapshot would end a run
            except (ImportError, OSError) as error:
                raise ValueError(f"callbacks.{self.name}: {metric.title} cannot be computed: {error}") from error

    def _score(
        self,
        images: Images,
        device: torch.device,
        conditions: dict[str, Any],
        step: int | None,
        costs: list[Cost],
    ) -> tuple[list[Score], dict[str, bytes]]:
        """The metrics' scores, and their files on the first rank.

        Args:
            images: all of them, on every rank.
            device: of this rank.
            conditions: of the images, for the fingerprints.
            step: optimizer steps of the weights.
            costs: gets a cost for each metric.
        """
        samples = samples_of(images, self.prompts, device)
        if self._reference is not None:
            samples.reference = self._reference.samples(images.shape[-1], device)
        label, known = f"callbacks.{self.name}", self.conditions(conditions)
        if self._copies is not None and not ranks.from_first(self._copies.training.complete):
            with measured("training_features", costs), exact():
                self._copies.look_at_training(device)
        scored = score_samples(samples, self.metrics, known, step, label, costs)
        for cost in costs if ranks.this() == 0 else ():
            tqdm.write(f"{self.name}: {cost}")
        return scored


def encode(texts: Sequence[str], data: DataModule, device: torch.device | str = "cpu") -> Sequence[Texts]:
    """Text states, each one row on the CPU, of the very text encoders that a prepared set was encoded with.

    Args:
        texts: any.
        data: the data module, set up.
        device: where the text encoders run, one after the other; they are gone from there afterwards.

    Raises:
        FileNotFoundError: the text encoder is not there.
        ValueError: the data has no text states, or those of other weights.
    """
    references, limit = data.manifest.text_encoders, data.manifest.token_limit
    if not references:
        raise ValueError(f"the data in {data.folder} has no text states: run `t2ikit prepare encode`")
    remedy = "bring the same weights or run `t2ikit prepare encode` again"
    loaded = (load_encoder(reference, Path(data.folder), remedy, None, device, limit) for reference in references)
    return encode_prompts(with_remarks(loaded, texts), texts)
