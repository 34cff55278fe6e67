"""Updates the averages of the weights once an optimizer step, and keeps them in the checkpoint."""

from __future__ import annotations

from typing import Any

import lightning as L

from t2ikit.learner import Averages


class EMA(L.Callback):
    """Averages the trainable floating-point weights of ``pl_module.network``, and nothing else.

    The raw weights stay in the model and in the checkpoint's ``state_dict``; the averages are kept by this callback.
    They hang at the module, and every evaluator reads them through ``pl_module.averaged()``, so that no score is taken
    of other weights by accident.

    Args:
        decay: weight of the past, one or several profiles; the first is the one evaluated by default.
        warmup: start with shorter averages, ``min(decay, (1 + k) / (10 + k))`` at optimizer step k.

    Attributes:
        begin_new: a resume may have decays that its checkpoint lacks: they begin at the present weights. A run sets it
            once its changes are allowed.

    Raises:
        ValueError: a decay outside [0, 1), or twice the same.

    Example:
        >>> with module.averaged():                      # doctest: +SKIP
        ...     images = module.sample(text, noise, steps=50)
    """

    def __init__(self, decay: float | list[float] = 0.9999, warmup: bool = True) -> None:
        super().__init__()
        decays = [decay] if isinstance(decay, (int, float)) else list(decay)
        if not decays or len(set(decays)) != len(decays) or not all(0.0 <= d < 1.0 for d in decays):
            raise ValueError(f"callbacks.ema: decay needs one or several different numbers in [0, 1), got {decay}")
        self.decays = [float(d) for d in decays]
        self.warmup = warmup
        self.begin_new = False
        self._seen = 0
        self._averages: Averages | None = None
        self._loaded: dict[str, Any] | None = None

    @property
    def state_key(self) -> str:
        return "EMA"

    def state_dict(self) -> dict[str, Any]:
        return {} if self._averages is None else self._averages.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict or None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._averages is not None and self._averages.applied_now:
            raise RuntimeError("a checkpoint inside `with module.averaged(...)` would store averages as raw weights")

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._averages = pl_module.averages = Averages(pl_module.network, self.decays, self.warmup)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._averages is not None
        if self._loaded is not None:
            for decay in self._averages.restore(self._loaded, self.begin_new):
                trainer.print(
                    f"the checkpoint has no average of decay {decay}: a new one begins at the present weights"
                )
            self._loaded = None
        self._seen = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self._averages is not None
        if trainer.global_step > self._seen:  # only after an optimizer step, not after every accumulated micro-batch
            self._seen = trainer.global_step
            if pl_module.skipped_step != trainer.global_step:
                self._averages.update()
