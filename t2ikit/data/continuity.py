"""Whether a run goes on with the data that it began with."""

from __future__ import annotations

from typing import Literal, get_args

from t2ikit.data.manifest import Manifest

Change = Literal["same", "extended", "any"]
CHANGES: tuple[Change, ...] = get_args(Change)

# Said first, since they explain why the records differ.
_CONTENT = ("captions", "setting", "source", "count", "source_sha256")


def check_continues(before: Manifest, now: Manifest, allowed: Change) -> None:
    """Refuses data that a run cannot go on with.

    Encoders, shapes and formats must be those of before, whatever is allowed: the network knows no others. Records may
    have been appended ("extended") or be others ("any") where that is allowed. What the set says of itself, such as the
    folder that its images came from, may always change as long as its records do not.

    Args:
        before: of the data when the checkpoint was written.
        now: of the present data.
        allowed: "same" records only, "extended" to let a set have grown, "any" to let it hold other records.

    Raises:
        ValueError: names the unlike field, both values and the option that allows it.
    """
    unlike = before.mismatch(now)
    if unlike is None and before.normalisation != now.normalisation:
        unlike = f"normalisation is {now.normalisation} there and {before.normalisation} here"
    if unlike is not None:
        raise ValueError(
            f"the present data is not of the kind that the checkpoint was trained on ({unlike}; here: the checkpoint): "
            "set --data.root as it was, or begin a new run"
        )
    if _records(before) == _records(now):
        return
    if _extends(before, now):
        if allowed == "same":
            raise ValueError(
                f"the data has grown since the checkpoint, from {before.count} to {now.count} records, and with it the "
                "order of what is left: set --model.resume_data extended to go on with all of them, or --data.root as "
                "it was"
            )
        return
    if allowed != "any":
        raise ValueError(
            f"the data holds other records than the checkpoint was trained on ({_difference(before, now)}): set "
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
