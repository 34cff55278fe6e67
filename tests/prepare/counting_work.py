"""Work for the tests of the engine, in a file of its own so that started ranks can import it; also a program."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from t2ikit.prepare.engine.engine import run_work
from t2ikit.prepare.engine.launch import Launch
from t2ikit.prepare.engine.shards import Rejected
from t2ikit.prepare.engine.work import HostWork, Work


def say(*words: object) -> None:
    """Prints a line in one write: ``print`` makes several where output is unbuffered, and ranks share it."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Counting(Work):
    """Item k becomes the text of k; every 13th has no result; item ``broken`` raises. Notes what was computed."""

    def __init__(
        self, items: int = 103, identity: str = "counting", broken: int | None = None, seconds: float = 0.0
    ) -> None:
        self.items = items
        self.seconds = seconds
        self.identity = identity
        self.broken = broken
        self.computed: list[int] = []
        self.shards_begun = 0
        self.devices: list[torch.device] = []

    def __len__(self) -> int:
        return self.items

    def load(self, index: int) -> int:
        return index

    def setup(self, device: torch.device) -> None:
        self.devices.append(device)
        if self.seconds:
            say("rank", os.getpid())

    def begin_shard(self) -> None:
        self.shards_begun += 1

    def compute(self, items: list[Any]) -> list[bytes | Rejected]:
        if self.broken in items:
            raise RuntimeError(f"item {self.broken} is broken")
        self.computed += items
        time.sleep(self.seconds)
        return [Rejected("unlucky") if k % 13 == 12 else f"item {k}".encode() for k in items]

    def facts(self, results: Sequence[bytes | Rejected]) -> dict[str, int]:
        return {"longest": max(len(result) for result in results if isinstance(result, bytes))}


class Making(HostWork):
    """The results of ``Counting`` without a device; item ``broken`` raises."""

    identity = "making"

    def __init__(self, items: int = 103, broken: int | None = None) -> None:
        self.items = items
        self.broken = broken

    def __len__(self) -> int:
        return self.items

    def load(self, index: int) -> bytes | Rejected:
        if index == self.broken:
            raise RuntimeError(f"item {index} is broken")
        return Rejected("unlucky") if index % 13 == 12 else f"item {index}".encode()


def main(folder: str, devices: str, broken: str = "", seconds: str = "0") -> None:
    work = Counting(broken=int(broken) if broken else None, seconds=float(seconds))
    launch = Launch("cpu", devices, batch_size=4)
    results = run_work(work, Path(folder), launch, "counting", shard_size=10)
    if results.chief:
        say("chief", len(results), hashlib.sha256(b"".join(results)).hexdigest())
        results.ledger.folder.with_name("kept").mkdir()
    results.discard()
    say("after", Path(folder).exists())


if __name__ == "__main__":
    main(*sys.argv[1:])
