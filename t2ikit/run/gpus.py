"""GPUs by name: memory, peak rates, power; from the makers' data sheets, not measured.

Rates are of dense matrices: data sheets of NVIDIA print twice as much for sparse ones. 16-bit products accumulate in
fp32. Power is what the whole board may take.

Sources, by NVIDIA: data sheets "H100 Tensor Core GPU" (SXM, PCIe, NVL), "H200 Tensor Core GPU", "A100 Tensor Core GPU",
"L40S", "L4 Tensor Core GPU" and "DGX B200" (an eighth of the machine); white papers "Ada GPU architecture" (RTX 4090,
appendix), "Ampere GA102 GPU architecture" (RTX 3090, RTX A6000) and "RTX Blackwell GPU architecture" (RTX 5090).
"""

from __future__ import annotations

from dataclasses import dataclass

from t2ikit.config.errors import ConfigError, nearest


@dataclass(frozen=True)
class GPU:
    """A board.

    Attributes:
        name: as it is printed.
        gigabytes: of memory, 10^9 bytes.
        tflops: peak of 16-bit products, 10^12 operations a second.
        tflops_fp32: the same without tensor cores, as torch computes fp32 products by default.
        watts: of the board.
    """

    name: str
    gigabytes: float
    tflops: float
    tflops_fp32: float
    watts: float


GPUS = {
    "a100-40": GPU("A100 SXM 40 GB", 40, 312, 19.5, 400),
    "a100": GPU("A100 SXM 80 GB", 80, 312, 19.5, 400),
    "h100": GPU("H100 SXM", 80, 989, 67, 700),
    "h100-pcie": GPU("H100 PCIe", 80, 756, 51, 350),
    "h200": GPU("H200 SXM", 141, 989, 67, 700),
    "b200": GPU("B200", 180, 2250, 75, 1000),
    "l4": GPU("L4", 24, 121, 30.3, 72),
    "l40s": GPU("L40S", 48, 362, 91.6, 350),
    "a6000": GPU("RTX A6000", 48, 154.8, 38.7, 300),
    "rtx3090": GPU("RTX 3090", 24, 71, 35.6, 350),
    "rtx4090": GPU("RTX 4090", 24, 165.2, 82.6, 450),
    "rtx5090": GPU("RTX 5090", 32, 209.5, 104.8, 575),
}

UTILISATION = 0.35
"""Share of the peak that a training step reaches: DiT-I 0.33, CAD-I L 0.38 on an H100, blocks compiled; 0.22 for DiT-I
eager on an H200 (docs/benchmarks.md, of the peak in this table)."""

USABLE = 0.85
"""Share of the memory that a step may count on: the rest is for CUDA, kernels and the gaps of the allocator."""


def find_gpu(name: str) -> GPU:
    """The GPU of a name.

    Raises:
        ConfigError: it is not in the table.
    """
    if name.lower() not in GPUS:
        raise ConfigError(f"--gpu {name}: not in the table{nearest(name.lower(), GPUS)}")
    return GPUS[name.lower()]
