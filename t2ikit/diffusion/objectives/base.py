"""The contract of an objective: random numbers first, then a pure loss.

``draw`` runs eagerly and takes every random number of a step; the call that follows is a pure function of the denoiser,
the batch and these numbers, and is what ``torch.compile`` sees. So a step can be repeated, split and resumed.

Shape legend::

    x_0, noise  [B, C, H, W]      t, loss_B, every part  [B]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from t2ikit.batch import Batch, Movable, Texts, each_text, map_texts
from t2ikit.denoisers.autocast import kept_rows
from t2ikit.denoisers.base import Denoiser
from t2ikit.diffusion.processes import Process
from t2ikit.diffusion.terms.base import Needs
from t2ikit.rng import Keyed


@dataclass
class Draws(Movable):
    """The random numbers of one batch, and what they decide. An objective of one's own may add fields.

    Attributes:
        noise: [B, C, H, W] standard normal.
        text: the conditioning, after the conditioning drop.
        keep: [B] bool on the CPU, which samples are self-conditioned; None: no first pass.
        terms: names of the terms that are on at this step.
        most: the number of rows that compiled code computes in the first pass; ``keep`` has hardly ever more. 0: all.
    """

    noise: Tensor
    text: Texts
    keep: Tensor | None = None
    terms: tuple[str, ...] = ()
    most: int = 0

    def static(self, device: torch.device) -> Draws:
        """The same for compiled code: ``keep`` on ``device``, in a form whose shape does not depend on its values.

        That is the index [most] int64 of the kept rows, the last of them repeated. Where ``most`` is no less than the
        batch, or ``keep`` has more rows or none, it is the mask, with which all rows go through the first pass.
        """
        if self.keep is None:
            return self
        index = self.keep.nonzero().flatten()
        if not 1 <= len(index) <= self.most < len(self.keep):
            return replace(self, keep=self.keep.to(device))
        repeated = index[-1:].expand(self.most - len(index))
        return replace(self, keep=kept_rows(torch.cat([index, repeated]), device))


@dataclass
class Loss:
    """What an objective returns.

    Attributes:
        loss_B: [B], at least fp32; its mean is what is minimised.
        parts: what it is made of, each [B] under its name, before weights; they are logged as ``train/loss/<name>``.
    """

    loss_B: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """What is minimised. It may own parameters, which are trained, and frozen networks.

    Its parameters are in the optimizer and in the checkpoint's ``state_dict``; averages, snapshots, export and the
    validation loss see the denoiser alone.

    Args:
        process: the diffusion process.

    Attributes:
        process: the diffusion process.
        needs: what it reads of a record and of the denoiser; refused before the run where the data or the denoiser
            lacks it.
        coherence: name of the array of a record that says how well text and image agree, one number in [0, 1]; it is
            among ``needs``. For denoisers that know coherence, and only for them; None = it reads none.
        unconditional: the encoding of the empty prompt by every text encoder, one row; set before the first step from
            the data.
    """

    needs: Needs = Needs()
    coherence: str | None = None

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process
        self.unconditional: Texts | None = None

    @abstractmethod
    def draw(self, batch: Batch, rng: Keyed, step: int) -> Draws:
        """Every random number of this batch; no global random state is read or changed.

        Args:
            batch: on its device; its slots key the numbers, so that they do not depend on how a step is split.
            rng: the keyed random numbers of the run.
            step: optimizer steps done.
        """

    @abstractmethod
    def forward(self, denoiser: Denoiser, batch: Batch, draws: Draws) -> Loss:
        """The loss, a pure function of its arguments and of this objective's weights.

        Args:
            denoiser: the network.
            batch: as ``draw`` got it.
            draws: of ``draw``, or ``draws.static(device)``.
        """

    @abstractmethod
    def validation(self, denoiser: Denoiser, batch: Batch, rng: Keyed) -> Tensor:
        """The loss of held-out records, loss_B [B], of the denoiser alone: fixed noise, full text, no term."""

    def check_texts(self, texts: Texts) -> None:
        """Refuses options that do not fit the text encoders of the data; called at setup.

        Args:
            texts: the empty prompt by every text encoder.

        Raises:
            ValueError: names the option.
        """

    def empty_prompt(self, device: torch.device) -> Texts:
        """The encoding of the empty prompt by every text encoder on ``device``, one row.

        Raises:
            ValueError: nothing has set it.
        """
        if self.unconditional is None:
            raise ValueError(
                "the encoding of the empty prompt is missing: run through a Trainer with a data module, or set "
                "`objective.unconditional`"
            )
        if each_text(self.unconditional)[0].mask.device != device:
            self.unconditional = map_texts(lambda text: text.to(device), self.unconditional)
        return self.unconditional
