"""Whether a run goes on with the data that it began with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from t2ikit.records.manifest import Manifest

Change = Literal["same", "extended", "any"]
CHANGES: tuple[Change, ...] = get_args(Change)

# Said first, since they explain why the records differ.
_CONTENT = ("captions", "setting", "source", "count", "source_sha256")


@dataclass(frozen=True)
class GatedState:
    """A gated stream as a checkpoint remembers it.

    Attributes:
        name: of the source.
        quantile: noise quantile beyond which it may be drawn.
        probability: with which it then is.
        manifest: of its set, as JSON.
    """

    name: str
    quantile: float
    probability: float
    manifest: str


@dataclass(frozen=True)
class StreamState:
    """Everything that decides, beside the training set itself, what the slots of a run hold.

    Attributes:
        batch_size: ``data.batch_size``: an epoch ends with its last whole batch.
        seed: ``data.seed``.
        shuffle_window: ``data.shuffle_window``.
        caption_weights: ``data.caption_weights``.
        gated: the gated streams, in their order.
    """

    batch_size: int
    seed: int
    shuffle_window: int
    caption_weights: list[float] | dict[str, float] | None = None
    gated: tuple[GatedState, ...] = ()

    def to_state(self) -> dict[str, Any]:
        """As it goes into a checkpoint: plain types only."""
        return {**asdict(self), "gated": [asdict(stream) for stream in self.gated]}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> StreamState:
        """The inverse of :meth:`to_state`."""
        return StreamState(**{**state, "gated": tuple(GatedState(**stream) for stream in state["gated"])})


def check_streams_continue(before: StreamState, now: StreamState, allowed: Change) -> None:
    """Refuses options and gated streams under which the rest of a run would not be what was left of it.

    Args:
        before: of the run when the checkpoint was written.
        now: of the present run.
        allowed: "same", "extended" to let the sets of the gated streams have grown, "any" to let everything change.

    Raises:
        ValueError: names the option that changed, both values and the option that allows it.
    """
    if allowed == "any":
        return
    for item in fields(StreamState):
        old, new = getattr(before, item.name), getattr(now, item.name)
        if item.name != "gated" and old != new:
            raise ValueError(
                f"data.{item.name} was {old} in the run of the checkpoint and is {new} now: what is left of the run "
                f"would hold other records. Set --data.{item.name} as it was, or --model.resume_data any to go on so"
            )
    ours = [stream.name for stream in now.gated]
    if [stream.name for stream in before.gated] != ours:
        raise ValueError(
            f"the checkpoint was trained on the gated streams {', '.join(s.name for s in before.gated) or 'none'}, now "
            f"there are {', '.join(ours) or 'none'}: set the callbacks as they were, or --model.resume_data any to go "
            "on with these"
        )
    for old, new in zip(before.gated, now.gated, strict=True):
        for what in ("quantile", "probability"):
            first, second = getattr(old, what), getattr(new, what)
            if not math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-9):
                raise ValueError(
                    f"stream {new.name} had the {what} {first:g} in the run of the checkpoint and has {second:g} now "
                    "(tau, p and the process decide them): set its callback as it was, or --model.resume_data any to "
                    "go on so"
                )
        manifests = Manifest.from_json(old.manifest), Manifest.from_json(new.manifest)
        check_continues(*manifests, allowed, f"the data of stream {new.name}")


def check_continues(before: Manifest, now: Manifest, allowed: Change, what: str = "the data") -> None:
    """Refuses data that a run cannot go on with.

    Encoders, shapes and formats must be those of before, whatever is allowed: the network knows no others. Records may
    have been appended ("extended") or be others ("any") where that is allowed. What the set says of itself, such as the
    folder that its images came from, may always change as long as its records do not.

    Args:
        before: of the data when the checkpoint was written.
        now: of the present data.
        allowed: "same" records only, "extended" to let a set have grown, "any" to let it hold other records.
        what: the set, for messages.

    Raises:
        ValueError: names the unlike field, both values and the option that allows it.
    """
    unlike = before.mismatch(now)
    if unlike is not None:
        raise ValueError(
            f"{what} is not of the kind that the checkpoint was trained on ({unlike}; here: the checkpoint): "
            "set --data.root as it was, or begin a new run"
        )
    if _records(before) == _records(now):
        return
    if _extends(before, now):
        if allowed == "same":
            raise ValueError(
                f"{what} has grown since the checkpoint, from {before.count} to {now.count} records, and with it the "
                "order of what is left: set --model.resume_data extended to go on with all of them, or --data.root as "
                "it was"
            )
        return
    if allowed != "any":
        raise ValueError(
            f"{what} holds other records than the checkpoint was trained on ({_difference(before, now)}): set "
            "--data.root as it was, or --model.resume_data any to go on with these"
        )


def _records(manifest: Manifest) -> dict[str, str | int]:
    """What identifies the records: hashes of the chunks, and how many records there are."""
    chunks = {name: digest for name, digest in manifest.chunk_sha256.items() if name.endswith(".bin")}
    return {**chunks, "count": manifest.count}


def _extends(before: Manifest, now: Manifest) -> bool:
    """Whether the parts of before are the first ones now, chunk by chunk, and others follow."""
    known = _records(before)
    del known["count"]
    return (
        before.count < now.count
        and now.parts[: len(before.parts)] == before.parts
        and all(now.chunk_sha256.get(name) == digest for name, digest in known.items())
    )


def _difference(before: Manifest, now: Manifest) -> str:
    for name in _CONTENT:
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            return f"{name} was {old}, now {new}"
    unlike = sorted(name for name, digest in _records(before).items() if _records(now).get(name) != digest)
    return f"chunk_sha256 of {', '.join(unlike[:3]) or 'new chunks'}"
