"""Where the networks of a metric are: with what they are shown, and on the CPU between two evaluations."""

from __future__ import annotations

from torch import nn


class NetworkHolder:
    """Has networks among its attributes; they go to the device of what they are shown."""

    def offload(self) -> None:
        """Brings all networks to the CPU: between two evaluations the GPU is the training's."""
        for value in vars(self).values():
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, NetworkHolder):
                    part.offload()
                elif isinstance(part, nn.Module):
                    part.to("cpu")
