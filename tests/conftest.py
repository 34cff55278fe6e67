"""Fixtures of the whole suite: one thread, and the folder of sample data if there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the kit remembers of the tests' files does not stay in the cache of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T2IKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The folder of real photos, embeddings and check vectors named by T2IKIT_TEST_DATA; skips without."""
    folder = os.environ.get("T2IKIT_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("T2IKIT_TEST_DATA names no folder of sample data")
    return Path(folder)
