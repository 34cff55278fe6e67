"""What a text encoder cannot take of some texts: tokens behind its limit, and words that it does not know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from t2ikit.encoders.text import TextEncoder

_AT_ONCE = 1024
_SHOWN = 3


def cut_texts(encoder: TextEncoder, texts: Iterable[str]) -> tuple[int, str]:
    """How many of the texts are longer than ``encoder.max_tokens``, and the first of them ("" where there is none)."""
    count, first = 0, ""
    batch: list[str] = []

    def look() -> None:
        nonlocal count, first
        for text, length in zip(batch, encoder.lengths(batch) if batch else (), strict=True):
            # One of just as many tokens is not cut.
            if (
                length == encoder.max_tokens
                and len(encoder.tokenizer(text, verbose=False, split_special_tokens=True).input_ids) > length
            ):
                count, first = count + 1, first or text
        batch.clear()

    for text in texts:
        batch.append(text)
        if len(batch) == _AT_ONCE:
            look()
    look()
    return count, first


def with_remarks(encoders: Iterable[TextEncoder], prompts: Sequence[str]) -> Iterator[TextEncoder]:
    """The encoders one by one; prints how many prompts each does not take as they are, with the first of them."""
    unique = [prompt for prompt in dict.fromkeys(prompts) if prompt]  # not the empty one, which guidance uses
    for encoder in encoders:
        count, first = cut_texts(encoder, unique)
        if count:
            print(
                f"{count:,} of {len(unique):,} prompts are longer than the {encoder.max_tokens} tokens that the text "
                f"encoder {encoder.reference.name} takes and are cut, such as {first[:60]!r}"
            )
        unknown = [words for prompt in unique if (words := encoder.unknown_words(prompt))]
        if unknown:
            words = list(dict.fromkeys(chain.from_iterable(unknown)))
            print(
                f"{len(unknown):,} of {len(unique):,} prompts hold words that the text encoder "
                f"{encoder.reference.name} does not know and takes for one and "
                f"the same, such as {', '.join(map(repr, words[:_SHOWN]))}"
            )
        yield encoder
