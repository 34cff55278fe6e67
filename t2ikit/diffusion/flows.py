"""Rectified flow, the process of straight lines between image and noise. Shape legend: see ``processes``."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from t2ikit.diffusion.processes import Process, Spacing, Threshold
