"""A small denoiser that can all that a denoiser can, and one broken variant of it for every check."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from t2ikit.batch import Prediction, Text
from t2ikit.denoisers import Denoiser
from t2ikit.denoisers.autocast import kept_rows, without_graph
from t2ikit.denoisers.context import Context
from t2ikit.denoisers.embeddings import unpatchify
from t2ikit.denoisers.windows import patch_positions, window_rows

WIDTH = 12


@dataclass(frozen=True)
class Tokens(Context):
    padded = ("tokens", "mask")

    tokens: Tensor
    mask: Tensor
    window: Tensor


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + torch.tanh(self.inner(tokens))


class Small(Denoiser):
    """Two blocks on 16 patches; the text, the level and the state are added to them."""

    parts = {"time": ("level.",), "text": ("text.",), "core": ("blocks.", "carry."), "shell": ("first.", "last.", "pl")}
    block: type[nn.Module] = Block
    context: type[Tokens] = Tokens
    supports = frozenset({"taps", "window"})  # type: ignore[assignment]
    input_shape = (2, 8, 8)  # type: ignore[assignment]
    tapped_blocks = 2  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.grid, self.patch_size, self.text_dim = (4, 4), 2, 6
        self.text, self.level, self.carry = nn.Linear(6, WIDTH), nn.Linear(1, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.first, self.last = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 8)
        self.places = nn.Parameter(torch.empty(16, WIDTH))
        self.blocks = nn.ModuleList(self.block() for _ in range(2))
        self._reset_own()

    def _reset_own(self) -> None:
        nn.init.normal_(self.places)

    def encode_text(self, text: Any, coherence: Any = None, window: Tensor | None = None) -> Tokens:
        return self.context(self.text(text.embeddings), text.mask, window_rows(window, len(text), text.mask.device))

    def pooled(self, context: Tokens) -> Tensor:
        return (context.tokens * context.mask[..., None]).sum(1) / context.mask.sum(1, keepdim=True)

    def places_of(self, context: Tokens, grid: tuple[int, int]) -> Tensor:
        return self.places[patch_positions(context.window, self.grid, grid)]

    def run_block(self, block: nn.Module, tokens: Tensor) -> Tensor:
        return self._run(block, tokens)

    def trunk(self, x: Tensor, level: Tensor, context: Tokens, state: Tensor) -> tuple[Tensor, ...]:
        grid = (x.shape[2] // 2, x.shape[3] // 2)
        patches = (
            x.unflatten(2, (grid[0], 2)).unflatten(4, (grid[1], 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        )
        tokens = self.first(patches) + self.places_of(context, grid)
        tokens = tokens + (self.level(level[:, None]) + self.pooled(context) + self.carry(state))[:, None]
        after = []
        for block in self.blocks:
            tokens = self.run_block(block, tokens)
            after.append(tokens)
        return tuple(after)

    def forward(
        self, x: Tensor, level: Tensor, context: Any, state: Any = None, taps: tuple[int, ...] = ()
    ) -> Prediction:
        self.check_taps(taps)
        after = self.trunk(x, level, context, x.new_zeros(len(x), WIDTH) if state is None else state)
        output = unpatchify(self.last(after[-1]), 2, (x.shape[2] // 2, x.shape[3] // 2))
        return Prediction(output.to(x.dtype), after[-1].mean(1), tuple(after[tap - 1] for tap in taps))

    def self_condition(self, x: Tensor, level: Tensor, context: Any, keep: Tensor) -> Tensor:
        with without_graph(x.device.type):
            state = self(x, level, context).state
            if keep.dtype == torch.bool:
                return state * keep[:, None].to(state)
            index = kept_rows(keep, x.device)
            return torch.zeros_like(state).index_copy(0, index, state.index_select(0, index))


def changed(prediction: Prediction, output: Tensor) -> Prediction:
    return replace(prediction, output=output)


class TwoTexts(Small):
    """Takes the texts of two encoders, and the pooled vectors of the first."""

    supports = frozenset({"taps", "window", "several_texts"})  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.text_dim, self.pooled_dim = (6, 4), 3
        self.text = nn.ModuleList(nn.Linear(width, WIDTH) for width in (6, 4, 3))

    def encode_text(self, text: Any, coherence: Any = None, window: Tensor | None = None) -> Tokens:
        first, second = text
        vectors = self.text[2](first.pooled)[:, None]
        tokens = torch.cat([self.text[0](first.embeddings) + vectors, self.text[1](second.embeddings)], 1)
        mask = torch.cat([first.mask, second.mask], 1)
        return self.context(tokens, mask, window_rows(window, len(first), mask.device))


# ------------------------------------------------------------------ one fault each


class SecondUnread(TwoTexts):
    def encode_text(self, text: Any, *args: Any, **options: Any) -> Tokens:
        first, second = text
        return super().encode_text((first, replace(second, embeddings=0 * second.embeddings)), *args, **options)


class PooledUnread(TwoTexts):
    def encode_text(self, text: Any, *args: Any, **options: Any) -> Tokens:
        first, second = text
        return super().encode_text((replace(first, pooled=0 * first.pooled), second), *args, **options)


class TakesOne(TwoTexts):
    def encode_text(self, text: Any, *args: Any, **options: Any) -> Tokens:
        first, second = (*text, replace(text[0], embeddings=text[0].embeddings[..., :4]))[:2]
        return super().encode_text((first, second), *args, **options)


class UnknownLevel(Small):
    level_kind = "sigma"  # type: ignore[assignment]


class DoubleOutput(Small):
    def forward(self, x: Tensor, *args: Any, **options: Any) -> Prediction:
        prediction = super().forward(x, *args, **options)
        return changed(prediction, prediction.output.double())


class KeepsBf16(Small):
    def forward(self, x: Tensor, *args: Any, **options: Any) -> Prediction:
        prediction = super().forward(x, *args, **options)
        return changed(prediction, prediction.output.to(torch.mm(x.new_ones(1, 1), x.new_ones(1, 1)).dtype))


class BatchMean(Small):
    def forward(self, x: Tensor, *args: Any, **options: Any) -> Prediction:
        prediction = super().forward(x, *args, **options)
        return changed(prediction, prediction.output - prediction.output.mean(0))


class InPlace(Small):
    def forward(self, x: Tensor, *args: Any, **options: Any) -> Prediction:
        return super().forward(x.mul_(0.5), *args, **options)


class Noisy(Small):
    def forward(self, x: Tensor, *args: Any, **options: Any) -> Prediction:
        return super().forward(x + torch.randn_like(x), *args, **options)


class Remembers(Small):
    last_x: Tensor | None = None

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Prediction:
        previous = x if self.last_x is None or self.last_x.shape != x.shape else self.last_x
        self.last_x = x
        return super().forward(x + 0.1 * previous, *args, **options)


class ReadsMasked(Small):
    def pooled(self, context: Tokens) -> Tensor:
        return context.tokens.mean(1)


class CountsPadding(Small):
    def pooled(self, context: Tokens) -> Tensor:
        return (context.tokens * context.mask[..., None]).mean(1)


class Deaf(Small):
    def pooled(self, context: Tokens) -> Tensor:
        return 0.0 * super().pooled(context)


class WrongRows(Tokens):
    def rows(self, index: Tensor) -> Tokens:
        return self._map(lambda tensor: tensor[: len(index)])


class WrongCat(Tokens):
    def cat(self, other: Any) -> Any:
        return Tokens.cat(other, self)


class WrongDetach(Tokens):
    def detach(self) -> Any:
        return self


class ContextRows(Small):
    context = WrongRows


class ContextCat(Small):
    context = WrongCat


class ContextDetach(Small):
    context = WrongDetach


class DetachedTaps(Small):
    def forward(self, *args: Any, **options: Any) -> Prediction:
        prediction = super().forward(*args, **options)
        return replace(prediction, features=tuple(tap.detach() for tap in prediction.features))


class TapsChange(Small):
    def forward(self, *args: Any, taps: Any = (), **options: Any) -> Prediction:
        prediction = super().forward(*args, taps=taps, **options)
        return changed(prediction, prediction.output * (1.0 + 1e-6 * len(taps)))


class LostPlaces(Small):
    def places_of(self, context: Tokens, grid: tuple[int, int]) -> Tensor:
        return self.places[: grid[0] * grid[1]].expand(len(context), -1, -1)


class NoHome(Small):
    parts = {name: prefixes for name, prefixes in Small.parts.items() if name != "time"}


class GraphOfState(Small):
    def self_condition(self, x: Tensor, level: Tensor, context: Any, keep: Tensor) -> Tensor:
        return self(x, level, context).state * keep[:, None]


class AllRowsKept(Small):
    def self_condition(self, x: Tensor, level: Tensor, context: Any, keep: Tensor) -> Tensor:
        return super().self_condition(x, level, context, torch.ones(len(x), dtype=torch.bool))


class Unused(Small):
    parts = {**Small.parts, "core": ("blocks.", "carry.", "spare")}

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.zeros(3))


class Forgets(Small):
    def _reset_own(self) -> None:
        if not self.places.isnan().any():
            super()._reset_own()


class CountingBlock(Block):
    calls = 0

    def forward(self, tokens: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(tokens * (1.0 + 0.1 * self.calls))


class OtherWhenAgain(Small):
    block = CountingBlock


class CallsOnly(Small):
    def run_block(self, block: nn.Module, tokens: Tensor) -> Tensor:
        return self._call(block, tokens)


class BranchingBlock(Block):
    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) if float(tokens.detach().sum()) > 0 else super().forward(2.0 * tokens)


class Branches(Small):
    block = BranchingBlock


class Counting(Small):
    steps = 0

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Prediction:
        self.steps += self.training
        return super().forward(x * (1.0 + 0.1 * self.steps), *args, **options)


class CountsCalls(Small):
    calls = 0

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Prediction:
        self.calls += 1
        return super().forward(x if self.calls else 2.0 * x, *args, **options)


class NotCopied(Small):
    def __deepcopy__(self, memo: Any) -> NotCopied:
        return self


class Unregistered(Small):
    def __init__(self) -> None:
        super().__init__()
        self.scale = [torch.randn(())]

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Prediction:
        return super().forward(x * self.scale[0], *args, **options)


class Cached(Small):
    kept: Tensor | None = None

    def encode_text(self, text: Text, *args: Any, **options: Any) -> Any:
        context = super().encode_text(text, *args, **options)
        if self.kept is None:
            self.kept = self.text.weight.detach().clone()
        tokens = text.embeddings @ self.kept.T + self.text.bias
        return Tokens(tokens, context.mask, context.window)


class Fails(Small):
    def forward(self, *args: Any, **options: Any) -> Prediction:
        raise RuntimeError("no such kernel")


class UncountedBlocks(Small):
    tapped_blocks = 0  # type: ignore[assignment]

    def check_taps(self, taps: Any) -> None:
        pass


class CoherenceUnread(Small):
    supports = frozenset({"taps", "window", "coherence"})  # type: ignore[assignment]


FAULTS = [
    ("description", UnknownLevel, "level_kind must be one of gamma, t, log_snr; it is 'sigma'"),
    ("shape and dtype", DoubleOutput, "the output must have shape and dtype of x.*float64"),
    ("bf16 autocast", KeepsBf16, "under bf16 autocast the output must have.*bfloat16"),
    ("rows independent", BatchMean, "row 0 alone must give what it gives in a batch"),
    ("arguments unchanged", InPlace, "change nothing in place"),
    ("evaluation repeats", Noisy, "must leave the global random state"),
    ("evaluation repeats", Remembers, "keep nothing from call to call"),
    ("masked text", ReadsMasked, "the mask hides must change nothing"),
    ("padded text", CountsPadding, "padded to more tokens must give the same"),
    ("text matters", Deaf, "let forward read the context"),
    ("several texts", SecondUnread, "another text of encoder 2 of 2 must give another output"),
    ("several texts", PooledUnread, "other pooled vectors must give another output"),
    ("several texts", TakesOne, "one text in place of 2 must be refused"),
    ("context.rows", ContextRows, r"context.rows\(index\) must be the context of the texts at index"),
    ("context.cat", ContextCat, r"context.cat\(other\) must be the contexts of both texts"),
    ("context.detach", ContextDetach, r"must cut the graph"),
    ("taps", DetachedTaps, "features must keep their graph"),
    ("taps", TapsChange, "taps must not change the output"),
    ("window", LostPlaces, "keep the tokens' positions"),
    ("taps", UncountedBlocks, "must say after how many blocks by `tapped_blocks`; it is 0"),
    ("coherence", CoherenceUnread, "coherence 0 must give another output than 1"),
    ("parts", NoHome, "every parameter must be in one part, but level.weight is in no part"),
    ("FLOPs", Fails, "raised RuntimeError: no such kernel"),
    ("self-conditioning", GraphOfState, "self_condition must build no graph"),
    ("self-conditioning", AllRowsKept, "rows that are not kept must get the zero state"),
    ("gradients", Unused, "reaches spare"),
    ("reset_parameters", Forgets, "leaves places"),
    ("checkpointed blocks", OtherWhenAgain, "checkpoint_blocks must change neither loss nor gradients"),
    ("checkpointed blocks", CallsOnly, "call them by self._run"),
    ("compiled whole", Branches, "torch.compile cannot trace it"),
    ("compiled whole", CountsCalls, "one graph a shape was expected"),
    ("compiled blocks", Branches, "torch.compile cannot trace it"),
    ("deep copy", NotCopied, "a deep copy must be a network of its own"),
    ("state_dict", Unregistered, "with the same state_dict must give the same output"),
    ("averages", Cached, "averaged weights must act at once"),
    ("resume", Counting, "a resumed training must equal an undisturbed one"),
]
