"""Broken objectives, terms, solvers, augmentations and metrics: one fault each, and the sentence that names it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from t2ikit import rng
from t2ikit.batch import Batch, Text
from t2ikit.callbacks import AugmentationCallback
from t2ikit.diffusion import Denoising
from t2ikit.diffusion.objectives import Draws, Loss, Needs
from t2ikit.diffusion.solvers import SOLVERS, Solver
from t2ikit.diffusion.terms import MainPass, Term
from t2ikit.metrics import Metric, Result, SampleBatch, Samples

ARRAYS = {"features.trial": (16, 32)}

# ------------------------------------------------------------------ objectives


class WrongNeeds(Denoising):
    needs = ("features.trial",)  # type: ignore[assignment]


class GlobalNoise(Denoising):
    def draw(self, *args: Any) -> Draws:
        draws = super().draw(*args)
        return replace(draws, noise=torch.randn_like(draws.noise))


class SameNoise(Denoising):
    def draw(self, batch: Batch, rng: Any, step: int) -> Draws:
        return super().draw(replace(batch, slot=0), rng, step)


class ConsecutiveSlots(Denoising):
    def draw(self, batch: Batch, *args: Any) -> Draws:
        return super().draw(replace(batch, slot=int(batch.slots[0])), *args)


class NoiseOfTheBatch(Denoising):
    def draw(self, batch: Batch, *args: Any) -> Draws:
        generator = torch.Generator().manual_seed(int(batch.slots[0]))
        noise = torch.randn(batch.latents.shape, generator=generator)
        return replace(super().draw(batch, *args), noise=noise)


class OneNumber(Denoising):
    def forward(self, *args: Any) -> Loss:
        return Loss(super().forward(*args).loss_B.mean())


class HalfPrecision(Denoising):
    def forward(self, *args: Any) -> Loss:
        loss = super().forward(*args)
        return Loss(loss.loss_B, {"half": loss.loss_B.half()})


class ChangesTheBatch(Denoising):
    def forward(self, denoiser: Any, batch: Batch, draws: Draws) -> Loss:
        loss = super().forward(denoiser, batch, draws)
        batch.latents.mul_(0.5)
        return loss


class RandomCall(Denoising):
    def forward(self, denoiser: Any, batch: Batch, draws: Draws) -> Loss:
        return super().forward(denoiser, replace(batch, latents=batch.latents + torch.randn(1)), draws)


class NoGraph(Denoising):
    def forward(self, *args: Any) -> Loss:
        return Loss(super().forward(*args).loss_B.detach())


class UnusedProjector(Denoising):
    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.Linear(3, 3)


class BranchingLoss(Denoising):
    def forward(self, *args: Any) -> Loss:
        loss = super().forward(*args)
        return loss if float(loss.loss_B.detach().sum()) > 0 else Loss(loss.loss_B * 2)


class NoWindow(Denoising):
    def forward(self, denoiser: Any, batch: Batch, draws: Draws) -> Loss:
        whole = nn.functional.interpolate(batch.latents, (8, 8))
        draws = replace(draws, noise=nn.functional.interpolate(draws.noise, (8, 8)))
        return super().forward(denoiser, replace(batch, latents=whole, window=None), draws)


class RandomValidation(Denoising):
    def validation(self, denoiser: Any, batch: Batch, rng: Any) -> Tensor:
        return super().validation(denoiser, replace(batch, latents=torch.randn_like(batch.latents)), rng)


class UnregisteredScale(Denoising):
    def __init__(self) -> None:
        super().__init__()
        self.scale = [torch.rand(())]

    def forward(self, *args: Any) -> Loss:
        return Loss(super().forward(*args).loss_B * self.scale[0])


class ReadsMore(Denoising):
    def forward(self, denoiser: Any, batch: Batch, draws: Draws) -> Loss:
        loss = super().forward(denoiser, batch, draws)
        return Loss(loss.loss_B + sum(array.mean() for array in batch.extra.values()))


class NotANumberLater(Denoising):
    def draw(self, batch: Batch, rng: Any, step: int) -> Draws:
        draws = super().draw(batch, rng, step)
        return replace(draws, noise=draws.noise * float("nan")) if step > 1000 else draws


OBJECTIVES: list[tuple[str, Callable[[], Any], str]] = [
    ("description", WrongNeeds, "needs must be Needs"),
    ("random numbers by slot", GlobalNoise, "draw must leave the global random state"),
    ("random numbers by slot", SameNoise, "another slot must give other noise"),
    ("batch in two parts", NoiseOfTheBatch, "key the numbers of each row by its slot"),
    ("batch in two parts", ConsecutiveSlots, "key the numbers of each row by its slot"),
    ("loss", OneNumber, r"loss_B must be \[6\]"),
    ("loss", HalfPrecision, "half must be.*float16"),
    ("pure call", ChangesTheBatch, "change nothing in place"),
    ("pure call", RandomCall, "the call must leave the global random state"),
    ("gradients", NoGraph, "loss_B must have a graph"),
    ("gradients", UnusedProjector, "reaches projector.weight, projector.bias"),
    ("compiled", BranchingLoss, "torch.compile cannot trace it"),
    ("window", NoWindow, "batch.window must reach the denoiser"),
    ("validation", RandomValidation, "validation must leave the global random state"),
    ("copies and state_dict", UnregisteredScale, "with the same state_dict must give the same loss"),
    ("needs", ReadsMore, "not.named was read, too"),
    ("later steps", NotANumberLater, "the loss at a late step must be finite"),
]

# ------------------------------------------------------------------ terms


class Align(Term):
    """A sound one: one less the cosine of projected features and of those of another network."""

    needs = Needs(("features.trial",), (1, 2))

    def __init__(self, weight: float = 0.5, until: int | None = None) -> None:
        super().__init__(weight, until)
        self.projector = nn.Linear(64, 32)

    def forward(self, main: MainPass) -> Tensor:
        if main.window is not None:
            raise ValueError("Align compares whole images: leave Crop out")
        projected = self.projector(main.features[1] + main.features[2])
        return 1.0 - torch.cosine_similarity(projected, main.arrays["features.trial"], dim=-1).mean(1)


class TapsFromZero(Align):
    needs = Needs(("features.trial",), (0, 1))


class MeanOfAll(Align):
    def forward(self, main: MainPass) -> Tensor:
        return super().forward(main).mean()


class LessTheMean(Align):
    def forward(self, main: MainPass) -> Tensor:
        value = super().forward(main)
        return value - 0.5 * value.mean()


class NoisyTerm(Align):
    def forward(self, main: MainPass) -> Tensor:
        return super().forward(main) + torch.randn(1)


class TeachesNothing(Align):
    def forward(self, main: MainPass) -> Tensor:
        return super().forward(replace(main, features={tap: f.detach() for tap, f in main.features.items()}))


class UnusedTerm(Align):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.ones(2))


class NeverOff(Align):
    def on(self, step: int) -> bool:
        return True


class WrongInWindows(Align):
    def forward(self, main: MainPass) -> Tensor:
        if main.window is not None:
            return main.output.mean((1, 2, 3)) / 0.0
        return super().forward(main)


class ReadsMoreArrays(Align):
    def forward(self, main: MainPass) -> Tensor:
        return super().forward(main) + main.arrays["not.named"].mean()


class BranchingTerm(Align):
    def forward(self, main: MainPass) -> Tensor:
        value = super().forward(main)
        return value if float(value.detach().sum()) > 0 else 2 * value


class UnregisteredTerm(Align):
    def __init__(self) -> None:
        super().__init__()
        self.scale = [torch.rand(())]

    def forward(self, main: MainPass) -> Tensor:
        return super().forward(main) * self.scale[0]


TERMS: list[tuple[str, Callable[[], Any], str]] = [
    ("description", TapsFromZero, "taps counted from 1"),
    ("value", MeanOfAll, r"one finite number a sample, \[6\]; it gave \[\]"),
    ("rows independent", LessTheMean, "set compares_rows = True"),
    ("pure call", NoisyTerm, "a term must leave the global random state"),
    ("gradients", TeachesNothing, "teaches the denoiser nothing"),
    ("gradients", UnusedTerm, "reaches spare"),
    ("until", NeverOff, "with until = 3 the term must be off after 3 steps"),
    ("window", WrongInWindows, "where a window of 9 of 16 tokens is seen"),
    ("needs", ReadsMoreArrays, "not.named was read, too"),
    ("compiled in Denoising", BranchingTerm, "torch.compile cannot trace it"),
    ("copies and state_dict", UnregisteredTerm, "with the same state_dict must give the same"),
]

# ------------------------------------------------------------------ solvers


class Based(Solver):
    def steps(self, *args: Any) -> Any:
        yield from SOLVERS["ddim"].steps(*args)


class Anonymous(Based):
    @property
    def name(self) -> str:
        return repr(object())


class OneStateShort(Based):
    def steps(self, *args: Any) -> Any:
        yield from list(super().steps(*args))[:-1]


class Endless(Based):
    def steps(self, *args: Any) -> Any:
        while True:
            yield args[2]


class LeavesTheProcess(Based):
    def steps(self, *args: Any) -> Any:
        sys.exit(0)


class OtherNode(Based):
    def steps(self, estimate: Any, *args: Any) -> Any:
        yield from super().steps(lambda x, node, step: estimate(x, node + 1, step), *args)


class StopsEarly(Based):
    def steps(self, estimate: Any, grid: Any, x: Tensor, normal: Any) -> Any:
        for state in super().steps(estimate, grid, x, normal):
            yield state + 0.3 * x


class StepOfTheBatch(Based):
    def steps(self, estimate: Any, grid: Any, x: Tensor, normal: Any) -> Any:
        for state in super().steps(estimate, grid, x, normal):
            yield state / state.std()


class GlobalSolver(Based):
    def steps(self, estimate: Any, grid: Any, x: Tensor, normal: Any) -> Any:
        for state in super().steps(estimate, grid, x, normal):
            yield state + 1e-3 * torch.randn_like(state)


SOLVER_FAULTS: list[tuple[str, Callable[[], Any], str]] = [
    ("description", Anonymous, "name must be the same text in every process"),
    ("states", OneStateShort, "5 came"),
    ("states", Endless, "more came"),
    ("repeats", Endless, "yields x after each of the 4 steps, but more than 4 came"),
    ("states", LeavesTheProcess, "raised SystemExit: 0"),
    ("states", OtherNode, "nodes and steps 0 to K - 1|must be finite"),
    ("closed form", StopsEarly, "the error must fall with the steps"),
    ("rows independent", StepOfTheBatch, "must not depend on the others of its batch"),
    ("repeats", GlobalSolver, "must leave the global random state"),
]

# ------------------------------------------------------------------ augmentations


class GlobalFlip(AugmentationCallback):
    def augment(self, batch: Batch) -> Batch:
        return replace(batch, latents=batch.latents * torch.rand(len(batch), 1, 1, 1))


class Grows(AugmentationCallback):
    gain = 1.0

    def augment(self, batch: Batch) -> Batch:
        self.gain += 1.0
        return replace(batch, latents=batch.latents * self.gain)


class MirrorInPlace(AugmentationCallback):
    def augment(self, batch: Batch) -> Batch:
        batch.latents.copy_(batch.latents.flip(-1))
        return batch


class DropsRows(AugmentationCallback):
    def augment(self, batch: Batch) -> Batch:
        return batch.part(0, 8)


class LosesSlots(AugmentationCallback):
    def augment(self, batch: Batch) -> tuple[Batch, ...]:
        return batch.part(0, 8), replace(batch.part(8, 12), slot=batch.slot)


class Shuffles(AugmentationCallback):
    def augment(self, batch: Batch) -> Batch:
        order = torch.from_numpy(rng.uniforms(0, "order", batch.slot, len(batch))[:, 0]).argsort()
        return replace(batch, latents=batch.latents[order], index=batch.index[order])


class ForgetsArrays(AugmentationCallback):
    def augment(self, batch: Batch) -> Batch:
        return replace(batch, extra={})


class CutsSilently(AugmentationCallback):
    def augment(self, batch: Batch) -> Batch:
        return replace(batch, latents=batch.latents[..., :6, :6])


class EmptyText(AugmentationCallback):
    def augment(self, batch: Batch) -> Batch:
        return replace(batch, text=Text(batch.text.embeddings, torch.zeros_like(batch.text.mask)))


class OutsideGate(AugmentationCallback):
    def register(self, data: Any, module: Any) -> None:
        data.add_stream("collage", "train_collage", 40.0, 0.25)


AUGMENTATIONS: list[tuple[str, Callable[[], Any], str]] = [
    ("stored stream", OutsideGate, r"quantile and probability of stream collage must lie in \[0, 1\]"),
    ("function of slots", GlobalFlip, "an augmentation must leave the global random state"),
    ("function of slots", Grows, "the same slots must give the same batch"),
    ("not in place", MirrorInPlace, r"return dataclasses.replace\(batch, ...\)"),
    ("rows and slots kept", DropsRows, "every row must come back once"),
    ("rows and slots kept", LosesSlots, "every row must come back once"),
    ("rows and slots kept", Shuffles, "index must stay that of the row's slot"),
    ("rows and slots kept", ForgetsArrays, "features.trial is gone"),
    ("well formed", CutsSilently, "say which in window"),
    ("well formed", EmptyText, "each with at least one token"),
]

# ------------------------------------------------------------------ metrics


class Brightness(Metric):
    """A sound one."""

    def observe(self, batch: SampleBatch) -> Tensor:
        return batch.images.double().mean((1, 2, 3))

    def score(self, samples: Samples, rows: Any) -> Result:
        return Result({"brightness": float(rows.mean())})

    def fingerprint(self) -> dict[str, Any]:
        return {}


class AgainstTheMean(Brightness):
    def observe(self, batch: SampleBatch) -> Tensor:
        seen = super().observe(batch)
        return seen - seen.mean()


class OneRow(Brightness):
    def observe(self, batch: SampleBatch) -> Tensor:
        return super().observe(batch).mean()[None]


class UnknownLess(Brightness):
    less_is_better = ("darkness",)


class TextScore(Brightness):
    def score(self, samples: Samples, rows: Any) -> Result:
        return Result({"brightness": "high"})  # type: ignore[dict-item]


class Accumulates(Brightness):
    def __init__(self) -> None:
        self.total = 0.0

    def score(self, samples: Samples, rows: Any) -> Result:
        self.total += float(rows.mean())
        return Result({"brightness": self.total})


@dataclass
class Setting:
    size: int = 3


class ObjectInside(Brightness):
    def fingerprint(self) -> dict[str, Any]:
        return {"setting": Setting()}


class AddressInside(Brightness):
    def fingerprint(self) -> dict[str, Any]:
        return {"setting": repr(object())}


METRICS: list[tuple[str, Callable[[], Any], str]] = [
    ("rows independent", AgainstTheMean, "compare images in score, not in observe"),
    ("rows independent", OneRow, "one row an image, 24; it gave Tensor of 1"),
    ("result", UnknownLess, "darkness is none of them"),
    ("result", TextScore, "values must be numbers by name"),
    ("keeps nothing", Accumulates, "keep nothing between calls"),
    ("fingerprint", ObjectInside, "fingerprint must be JSON-able"),
    ("fingerprint", AddressInside, "the same in every process"),
]
