"""One run as it is asked for, on the command line or in Python."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2ikit.config.compose import stages_of
from t2ikit.config.errors import ConfigError
from t2ikit.config.merging import Override


@dataclass(frozen=True)
class Request:
    """One run of an experiment.

    Attributes:
        path: the experiment, a file or a name.
        overrides: in their order.
        resume: "last", "auto", a path, or None.
        fork: whether it resumes in a new version.
        stage: the one stage that is trained; None trains all.
        allow: what may differ from the checkpoint.
        trust: modules that the experiment may name though they are not ours.
    """

    path: Path
    overrides: tuple[Override, ...] = ()
    resume: str | None = None
    fork: bool = False
    stage: str | None = None
    allow: tuple[str, ...] = ()
    trust: tuple[str, ...] = ()

    def stages(self) -> dict[str, dict[str, Any]]:
        """The stages of the experiment; see :func:`~t2ikit.config.compose.stages_of`.

        Raises:
            ConfigError: as there; or ``stage`` is given, and there are none.
        """
        stages = stages_of(self.path, self.overrides)
        if self.stage is not None and not stages:
            raise ConfigError(f"--stage {self.stage}: {self.path} has no stages")
        return stages

    def command(self, prog: str) -> str:
        """What a user types for it, without --resume."""
        words = [word for override in self.overrides for word in (f"--{override.key}", override.text)]
        words += ["--stage", self.stage] if self.stage else []
        words += [word for name in self.trust for word in ("--trust", name)]
        return f"{prog} {shlex.join([str(self.path), *words])}"
