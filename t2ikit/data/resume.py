"""Going on: what decides the rest of a run, kept in its checkpoints and compared when the run is resumed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from t2ikit.config.errors import nearest
from t2ikit.data.gate import Gate
from t2ikit.records.manifest import Manifest

TRAIN = "train"
"""Name of the training set among the manifests; its first bucket, where there are several."""

APPENDED, RECORDS, GATES, BUCKETS = "data.appended", "data.records", "gates", "data.buckets"
ALLOWED = (
    "data.batch_size",
    "data.seed",
    "data.shuffle_window",
    "data.caption_weights",
    BUCKETS,
    GATES,
    APPENDED,
    RECORDS,
)
"""What ``--allow`` lets differ between the data of a checkpoint and of the run that goes on from it."""

# Named first, since they explain why the records differ.
_CONTENT = ("captions", "setting", "source", "count", "source_sha256")


@dataclass(frozen=True)
class Continuation:
    """Everything that decides what the slots of a run hold from a position on.

    Attributes:
        slot: the position: slots that the run has served.
        batch_size: ``data.batch_size``; an epoch ends with its last whole batch.
        seed: ``data.seed``.
        shuffle_window: ``data.shuffle_window``.
        caption_weights: ``data.caption_weights``.
        gates: the gated streams, in their order.
        manifests: of the training set ("train") and of the set of every gate, by its name; those of the second and
            later buckets as ``NAME/BUCKET``.
        buckets: names of the aspect buckets, in their order.
    """

    slot: int
    batch_size: int
    seed: int
    shuffle_window: int
    caption_weights: list[float] | dict[str, float] | None = None
    gates: tuple[Gate, ...] = ()
    manifests: Mapping[str, Manifest] = field(default_factory=dict)
    buckets: tuple[str, ...] = ()

    def to_state(self) -> dict[str, Any]:
        """As it goes into a checkpoint: plain types only."""
        manifests = {name: manifest.to_json() for name, manifest in self.manifests.items()}
        gates = [{**vars(gate), "folder": str(gate.folder)} for gate in self.gates]
        return {**vars(self), "gates": gates, "manifests": manifests, "buckets": list(self.buckets)}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Continuation:
        """The inverse of :meth:`to_state`.

        Raises:
            ValueError: the checkpoint does not say which data it was trained on.
        """
        if "manifests" not in state:
            raise ValueError(
                "the checkpoint does not say which data it was trained on: another version of t2ikit wrote it"
            )
        manifests = {name: Manifest.from_json(text) for name, text in state["manifests"].items()}
        gates = tuple(Gate(**gate) for gate in state["gates"])
        buckets = tuple(state.get("buckets", ()))
        return Continuation(**{**state, "gates": gates, "manifests": manifests, "buckets": buckets})

    def check(
        self,
        now: Continuation,
        allow: Collection[str] = (),
        changes: Collection[tuple[str, str]] = (),
        options: Collection[str] = (),
    ) -> None:
        """Refuses to resume a run whose rest would not be that of the run of the checkpoint.

        Encoders, shapes and formats must never change, since the network was trained on them. Other entries of a
        manifest, such as the folder of its images, may change as long as the records stay the same.

        Args:
            now: of the present run; its position is not compared.
            allow: keys that may differ, or parents of them.
            changes: what else differs, of the experiment: key and what is said of it.
            options: keys of the data that differ, which may be why the records are of another kind.

        Raises:
            ValueError: lists everything that differs and is not allowed, with the options that let it pass.
        """
        for name, manifest in self.manifests.items():
            unlike = manifest.mismatch(now.manifests[name]) if name in now.manifests else None
            if unlike is not None:
                known = ", ".join(f"--{key}" for key in options if key != "data.root")
                raise ValueError(
                    f"{_set_name(name)} is not of the kind that the checkpoint was trained on ({unlike}; here: the "
                    f"checkpoint): set {known or '--data.root'} as it was, or begin a new run"
                )
        refuse([*changes, *self._differences(now)], [*allow, APPENDED] if RECORDS in allow else allow)

    def _differences(self, now: Continuation) -> Iterator[tuple[str, str]]:
        """(key of ``ALLOWED``, what differs) for everything that differs."""
        for option in ("batch_size", "seed", "shuffle_window", "caption_weights"):
            before, after = getattr(self, option), getattr(now, option)
            if before != after:
                yield f"data.{option}", f"data.{option} was {before} and is {after} now"
        if self.buckets != now.buckets:
            yield (
                BUCKETS,
                f"the buckets were {', '.join(self.buckets) or 'none'} and are {', '.join(now.buckets) or 'none'} now",
            )
        names, names_now = [gate.name for gate in self.gates], [gate.name for gate in now.gates]
        if names != names_now:
            yield (
                GATES,
                f"the gated streams were {', '.join(names) or 'none'} and are {', '.join(names_now) or 'none'} now (the"
                " callbacks add them)",
            )
        else:
            for gate, gate_now in zip(self.gates, now.gates, strict=True):
                for setting in ("quantile", "probability"):
                    before, after = getattr(gate, setting), getattr(gate_now, setting)
                    if not math.isclose(before, after, rel_tol=1e-9, abs_tol=1e-9):
                        yield (
                            GATES,
                            f"stream {gate.name} had the {setting} {before:g} and has {after:g} now (tau, p and the "
                            "process decide them)",
                        )
        for name, manifest in self.manifests.items():
            if name in now.manifests:
                yield from _unlike_records(_set_name(name), manifest, now.manifests[name])


def training_manifest(checkpoint: Mapping[str, Any]) -> str | None:
    """The manifest of the training set, as JSON, in a whole checkpoint; None where it has none.

    It is in the state of the data module, under the name of its class; a module that trains on another kind of data
    module keeps it as ``data_manifest``.
    """
    for state in checkpoint.values():
        if isinstance(state, Mapping) and TRAIN in (state.get("manifests") or ()):
            return str(state["manifests"][TRAIN])
    return checkpoint.get("data_manifest")


def refuse(changes: Collection[tuple[str, str]], allow: Collection[str]) -> None:
    """Refuses what differs from a checkpoint and is not allowed.

    Args:
        changes: key and what is said of it.
        allow: keys that may differ; one allows all keys below it.

    Raises:
        ValueError: lists them, with the options that let them pass.
    """
    refused = [(key, text) for key, text in changes if not any(f"{key}.".startswith(f"{name}.") for name in allow)]
    if refused:
        options = " ".join(f"--allow {key}" for key in dict.fromkeys(key for key, _ in refused))
        raise ValueError(
            "the rest of the resumed run would not be that of the run of the checkpoint: "
            + "; ".join(text for _, text in refused)
            + f". Set it as it was, or accept the change with {options}"
        )


def check_allowed(keys: Collection[str], experiment: Collection[str] = ()) -> None:
    """ValueError for a key of ``--allow`` that is neither one of the data nor of the experiment, nor above one."""
    known = [*ALLOWED, *experiment]
    for key in keys:
        if not any(f"{name}.".startswith(f"{key}.") for name in known):
            raise ValueError(
                f"--allow {key}: what may differ on a resume is a key of the experiment, or one of {', '.join(ALLOWED)}"
                f"{nearest(key, known)}"
            )


def _set_name(name: str) -> str:
    source, _, bucket = name.partition("/")
    title = "the training set" if source == TRAIN else f"the set of stream {source}"
    return f"{title} in bucket {bucket}" if bucket else title


def _unlike_records(name: str, before: Manifest, now: Manifest) -> Iterator[tuple[str, str]]:
    if _records(before) == _records(now):
        return
    if _extends(before, now):
        yield APPENDED, f"{name} has grown from {before.count} to {now.count} records"
    else:
        yield RECORDS, f"{name} holds other records ({_difference(before, now)})"


def _records(manifest: Manifest) -> dict[str, str | int]:
    """What identifies the records: hashes of the chunks, and how many records there are."""
    chunks = {name: digest for name, digest in manifest.chunk_sha256.items() if name.endswith(".bin")}
    return {**chunks, "count": manifest.count}


def _extends(before: Manifest, now: Manifest) -> bool:
    """Whether the set still begins with all its earlier chunks, unchanged, and has new ones after them."""
    chunks = _records(before)
    del chunks["count"]
    return (
        before.count < now.count
        and now.parts[: len(before.parts)] == before.parts
        and all(now.chunk_sha256.get(name) == digest for name, digest in chunks.items())
    )


def _difference(before: Manifest, now: Manifest) -> str:
    for name in _CONTENT:
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            return f"{name} was {old}, now {new}"
    unlike = sorted(name for name, digest in _records(before).items() if _records(now).get(name) != digest)
    return f"chunk_sha256 of {', '.join(unlike[:3]) or 'new chunks'}"
