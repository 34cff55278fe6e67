"""Small pretrained models in their ordinary format, shared by the tests of the metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of 77 tokens and 224 pixels, whose vocabulary ends with GenEval's ten colours."""
    folder = tmp_path_factory.mktemp("clip")
    tiny_models.small_clip(folder)
    return folder
