"""Captions that a source holds beside its photos (``--caption-field``): a column, a field of JSON, or a text file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from t2ikit.files import parse_json

TEXT = "txt"
"""The field that means a file with this ending."""

NO_CAPTION = "the source has no caption of it"
"""Why a photo is left out whose caption is missing or empty."""


def caption_ending(field: str | None) -> str:
    """Ending of the files that hold captions; nothing without such a field."""
    return "" if field is None else ".txt" if field == TEXT else ".json"


def caption_in(contents: Mapping[str, bytes], field: str, where: str) -> str:
    """The caption of a photo in the files beside it; empty where there is none.

    Args:
        contents: of the files with the name of the photo, by their ending in lower case.
        field: the option ``--caption-field``.
        where: the photo, for messages.

    Raises:
        ValueError: the file cannot be read, or the field holds no text.
    """
    content = contents.get(caption_ending(field))
    if content is None:
        return ""
    try:
        text = content.decode("utf-8-sig")
        facts = {TEXT: text} if field == TEXT else parse_json(text)
    except ValueError as error:
        raise ValueError(f"the caption of {where} cannot be read: {error}") from error
    return plain_caption(facts.get(field) if isinstance(facts, dict) else None, field, where)


def plain_caption(value: Any, field: str, where: str) -> str:
    """A caption without space around it; empty for none.

    Raises:
        ValueError: it is no text.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(
            f"{field} of {where} is {type(value).__name__}, not a text: --caption-field names one caption a photo"
        )
    return value.encode("utf-8", "replace").decode().strip()  # JSON can hold half a character
