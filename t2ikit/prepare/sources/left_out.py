"""What a source holds and is no photo of it, counted by its reason: with the photos it adds up to the source."""

from __future__ import annotations

from collections.abc import Iterator

# Folders and files that systems, storage boxes and archivers add beside photos; hidden ones begin with a dot.
_OF_SYSTEMS = {
    "__macosx",
    "@eadir",
    "@tmp",
    "#recycle",
    "#snapshot",
    "@recycle",
    "@recently-snapshot",
    "$recycle.bin",
    "recycler",
    "system volume information",
    "lost+found",
    "found.000",
    "thumbs.db",
    "ehthumbs.db",
    "ehthumbs_vista.db",
    "desktop.ini",
    "folder.htt",
    "icon\r",
    "network trash folder",
    "temporary items",
    "lost.dir",
}
OF_SYSTEM = "of the system, not of the source"


def is_of_system(path: str) -> bool:
    """Whether a file, or a folder above it, was put there by a system: ``.DS_Store``, ``._x.jpg``, ``@eaDir/x.jpg``.

    Example:
        >>> is_of_system("train/cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg"), is_of_system("train/cat/1.jpg")
        (True, False)
    """
    return any(
        name.lower() in _OF_SYSTEMS or (name.startswith(".") and name not in (".", "..")) for name in path.split("/")
    )


class LeftOut:
    """How many members of a source are not read, by reason, each with the first one's name."""

    def __init__(self, reasons: dict[str, tuple[int, str]] | None = None) -> None:
        self.reasons = dict(reasons or {})

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Counts members.

        Args:
            reason: why they are left out, which follows on their number.
            name: of the first of them.
            count: how many.
        """
        before, first = self.reasons.get(reason, (0, name))
        if before + count:
            self.reasons[reason] = before + count, first

    def __len__(self) -> int:
        return sum(count for count, _ in self.reasons.values())

    def lines(self, source: str) -> Iterator[str]:
        """What to print: one line a reason."""
        for reason, (count, first) in self.reasons.items():
            yield f"{source}: {count:,} left out: {reason} (first {first})"
