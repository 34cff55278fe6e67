"""mPLUG-large (Li et al. 2022), the question-answering model that DPG-Bench and TIFA officially ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2ikit.metrics.questions.answers import Choices, QuestionAnswerer
from t2ikit.metrics.questions.models import pictures
from t2ikit.pretrained import PretrainedFolder, find_pretrained

MPLUG = "damo/mplug_visual-question-answering_coco_large_en"


@dataclass(eq=False)
class MPLUGAnswerer(QuestionAnswerer):
    """mPLUG-large fine-tuned on COCO questions, through modelscope: what DPG-Bench and TIFA officially ask.

    transformers has no class for it. modelscope is an optional package (``pip install "t2ikit[mplug]"``) that may ask
    for other versions of torch and transformers: keep it in an environment of its own if it does.

    Attributes:
        model: repository of modelscope, or a local folder with its files; loaded at the first question.
        revision: of the repository.
        reading: as in ``BlipAnswerer``.
    """

    model: str = MPLUG
    revision: str | None = None
    reading: str = "as_is"

    def __post_init__(self) -> None:
        super().__init__(1, self.reading)
        self._found: PretrainedFolder | None = None
        self._pipelines: dict[str, Any] = {}

    def _find(self) -> PretrainedFolder:
        if self._found is None:
            folder = Path(self.model).expanduser()
            if not folder.is_dir():
                try:
                    from modelscope.hub.snapshot_download import snapshot_download
                except ImportError as error:
                    raise ImportError(_NO_MODELSCOPE) from error
                folder = Path(snapshot_download(self.model, revision=self.revision))
            self._found = find_pretrained(str(folder), None, "answerer.init_args.model", ("vocab.txt", "config.yaml"))
        return self._found

    def _pipeline(self, device: torch.device) -> Any:
        name = "cpu" if device.type == "cpu" else f"cuda:{device.index or 0}"
        if name not in self._pipelines:
            try:
                from modelscope.pipelines import pipeline
                from modelscope.utils.constant import Tasks
            except ImportError as error:
                raise ImportError(_NO_MODELSCOPE) from error
            folder = str(self._find().folder)
            self._pipelines[name] = pipeline(Tasks.visual_question_answering, model=folder, device=name)
        return self._pipelines[name]

    def free_answers(self, images: Tensor, questions: Sequence[str], choices: Choices = None) -> list[str]:
        """Answers, one question after the other, as the official scorers ask."""
        answers = self._pipeline(images.device)
        shown = zip(pictures(images), questions, strict=True)
        return [str(answers({"image": image, "question": question})["text"]) for image, question in shown]

    def offload(self) -> None:
        """Drops the pipelines: modelscope's cannot move."""
        self._pipelines.clear()

    def identity(self) -> dict[str, Any]:
        """Model and hash of its weights."""
        described = {"features": f"mplug:{self.model}", "features_revision": self.revision}
        return {**described, "features_sha256": self._find().reference.sha256}


_NO_MODELSCOPE = (
    'mPLUG needs modelscope, which is not installed or cannot be loaded: pip install "t2ikit[mplug]", or choose '
    "another answerer, such as t2ikit.metrics.questions.models.BlipAnswerer"
)
