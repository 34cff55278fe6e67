"""Layers that the denoisers share: attention and transformer blocks.

Shape legend::

    B  samples      N, L  tokens of the sequence at hand      D  its width
    K  keys         A     width of an attention (heads * head width)

LayerNorms are affine with eps 1e-6; their kernels keep fp32 statistics for 16-bit inputs and weights too. Attention is
``scaled_dot_product_attention`` with nothing or a bias [B, 1, 1, K] of the keys, never [B, N, K], so that its fused
kernels can be used: flash without a bias, the memory-efficient one with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from t2ikit.denoisers.autocast import autocast_dtype

EPS = 1e-6


class Linear(nn.Linear):
    """Linear layer with Xavier-uniform weights and zero bias.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        parts: the weight is initialised as this many independent projections stacked along the output.
    """

    def __init__(self, in_features: int, out_features: int, parts: int = 1) -> None:
        self.parts = parts
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        """Initialises the weight again."""
        for projection in self.weight.detach().chunk(self.parts):
            nn.init.xavier_uniform_(projection)
        nn.init.zeros_(self.bias)


class LayerNorm(nn.LayerNorm):
    """Affine LayerNorm, eps 1e-6."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=EPS)


class HeadNorm(nn.Module):
    """RMSNorm over the width of a head, with a learned weight and fp32 statistics (QK-norm of Stable Diffusion 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def reset_parameters(self) -> None:
        """Sets the weight to one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), self.weight.shape, self.weight.to(wide), EPS).to(x.dtype)


class MLP(nn.Sequential):
    """Linear, GELU (exact, or its tanh approximation), dropout, Linear; ``ratio`` times wider inside."""

    def __init__(
        self, width: int, ratio: int, dropout: float = 0.0, approximate: Literal["none", "tanh"] = "none"
    ) -> None:
        super().__init__(
            Linear(width, ratio * width), nn.GELU(approximate), nn.Dropout(dropout), Linear(ratio * width, width)
        )


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch per sample with probability ``rate`` and rescales the kept ones.

    Raises:
        ValueError: a rate outside [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        check_rates(drop_path=rate)
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        if self.rate == 0.0 or not self.training:
            return branch
        keep = 1.0 - self.rate
        mask = torch.rand(branch.shape[0], 1, 1, device=branch.device).add_(keep).floor_()
        return branch * (mask / keep).to(branch.dtype)


@contextmanager
def evaluating(*modules: nn.Module | None) -> Iterator[None]:
    """Evaluation mode for the modules; every submodule gets its own mode back, so that one that is kept in evaluation
    mode stays so."""
    modes = [(layer, layer.training) for module in modules if module is not None for layer in module.modules()]
    try:
        for layer, _ in modes:
            layer.training = False
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


def key_bias(mask: Tensor, weight: Tensor) -> Tensor:
    """What attention adds to its logits so that it sees visible keys only: 0 for them, -inf elsewhere.

    Made once for all attentions to the same keys; from a bool mask each of them would make it again. Rows start at
    multiples of 16 numbers, as the memory-efficient kernel wants them, which would copy them otherwise.

    Args:
        mask: [B, K] bool, True at a visible key.
        weight: a weight of the attention; the bias has the dtype in which it is used.

    Returns:
        [B, 1, 1, K].
    """
    dtype = autocast_dtype(weight.device.type) or weight.dtype
    rows, keys = mask.shape
    bias = torch.full((rows, 1, 1, -(-keys // 16) * 16), -torch.inf, dtype=dtype, device=mask.device)[..., :keys]
    return bias.masked_fill_(mask[:, None, None], 0.0)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention, scale 1 / sqrt(head width).

    Args:
        q: [B, N, heads, head width].
        k: [B, K, heads, head width].
        v: [B, K, heads, head width].
        bias: [B, 1, 1, K] of :func:`key_bias`, or None when all keys are visible.

    Returns:
        [B, N, A].
    """
    attended = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias)
    return attended.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection, rows [Q; K; V].

    Args:
        width: D.
        heads: number of heads; divides ``width``.
        qk_norm: RMSNorm on queries and keys; each projection is then initialised on its own.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width, parts=3 if qk_norm else 1)
        self.out = Linear(width, width)
        self.q_norm = HeadNorm(width // heads) if qk_norm else None
        self.k_norm = HeadNorm(width // heads) if qk_norm else None

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [B, N, D], bias [B, 1, 1, N] of :func:`key_bias` -> [B, N, D]."""
        rows, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(rows, tokens, 3, self.heads, -1).unbind(2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return cast(Tensor, self.out(attend(q, k, v, bias)))


class CrossAttention(nn.Module):
    """Multi-head attention from queries of one width to a source of another, of width A = min of the two.

    Args:
        width: width of the queries and of the output.
        source_width: width of the source.
        heads: number of heads; divides A.
        qk_norm: RMSNorm on queries and keys; each projection is then initialised on its own.
    """

    def __init__(self, width: int, source_width: int, heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.inner = min(width, source_width)
        self.q = Linear(width, self.inner)
        self.kv = Linear(source_width, 2 * self.inner, parts=2 if qk_norm else 1)
        self.out = Linear(self.inner, width)
        self.q_norm = HeadNorm(self.inner // heads) if qk_norm else None
        self.k_norm = HeadNorm(self.inner // heads) if qk_norm else None

    def keys_values(self, source: Tensor) -> Tensor:
        """source [B, K, Ds] -> [B, K, 2 A], keys (normalised where QK-norm is on), then values."""
        fused = cast(Tensor, self.kv(source))
        if self.k_norm is None:
            return fused
        keys, values = fused.chunk(2, dim=-1)
        return torch.cat([self.k_norm(keys.unflatten(-1, (self.heads, -1))).flatten(-2), values], dim=-1)

    def forward(self, x: Tensor, keys_values: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [B, N, D], keys_values [B, K, 2 A], bias [B, 1, 1, K] of :func:`key_bias` -> [B, N, D]."""
        q = self.q(x).unflatten(-1, (self.heads, -1))
        if self.q_norm is not None:
            q = self.q_norm(q)
        k, v = keys_values.view(x.shape[0], keys_values.shape[1], 2, self.heads, -1).unbind(2)
        return cast(Tensor, self.out(attend(q, k, v, bias)))


class SelfBlock(nn.Module):
    """Pre-norm self-attention and MLP, each with its residual.

    Args:
        width: D.
        heads: number of heads.
        ratio: widening of the MLP.
        dropout: inside the MLP.
        drop_path: stochastic depth of both branches.
        layer_scale: initial value of a learned vector that multiplies each branch; None = no such vector.
        qk_norm: RMSNorm on queries and keys.
        approximate: form of the GELU.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        ratio: int = 4,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        qk_norm: bool = False,
        approximate: Literal["none", "tanh"] = "none",
    ) -> None:
        super().__init__()
        self.initial_ln = LayerNorm(width)
        self.sa = SelfAttention(width, heads, qk_norm)
        self.middle_ln = LayerNorm(width)
        self.ffn = MLP(width, ratio, dropout, approximate)
        self.drop_path = DropPath(drop_path)
        self.layer_scale = layer_scale
        self.layer_scale_1 = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))
        self.layer_scale_2 = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))

    def reset_parameters(self) -> None:
        """Sets the branch scales to their initial value."""
        if self.layer_scale_1 is not None and self.layer_scale_2 is not None and self.layer_scale is not None:
            nn.init.constant_(self.layer_scale_1, self.layer_scale)
            nn.init.constant_(self.layer_scale_2, self.layer_scale)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [B, N, D], bias [B, 1, 1, N] of :func:`key_bias` -> [B, N, D]."""
        branch = self.sa(self.initial_ln(x), bias)
        x = x + self.drop_path(branch if self.layer_scale_1 is None else branch * self.layer_scale_1)
        branch = self.ffn(self.middle_ln(x))
        return x + self.drop_path(branch if self.layer_scale_2 is None else branch * self.layer_scale_2)


class CrossBlock(nn.Module):
    """Pre-norm cross-attention to an un-normalised source, then an MLP, each with its residual.

    Args:
        width: width of the queries.
        source_width: width of the source.
        heads: number of heads.
        ratio: widening of the MLP.
    """

    def __init__(self, width: int, source_width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.initial_to_ln = LayerNorm(width)
        self.ca = CrossAttention(width, source_width, heads)
        self.middle_ln = LayerNorm(width)
        self.ffn = MLP(width, ratio)

    def forward(self, x: Tensor, keys_values: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [B, N, D], keys_values [B, K, 2 A] of ``ca``, bias [B, 1, 1, K] -> [B, N, D]."""
        x = x + self.ca(self.initial_to_ln(x), keys_values, bias)
        return x + self.ffn(self.middle_ln(x))


def truncated_normal_(table: Tensor, std: float = 0.02) -> None:
    """Fills a learned table with normal numbers, cut at two standard deviations."""
    nn.init.trunc_normal_(table, std=std, a=-2 * std, b=2 * std)


def check_divides(name: str, value: int, divisor: int, divisor_name: str) -> None:
    """Raises ValueError unless ``divisor`` divides ``value``."""
    if divisor < 1 or value % divisor:
        raise ValueError(f"{name} ({value}) must be a multiple of {divisor_name} ({divisor})")


def check_counts(least: int = 1, **options: int) -> None:
    """Raises ValueError unless every option is at least ``least``."""
    for name, value in options.items():
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check_rates(**options: float) -> None:
    """Raises ValueError unless every option is a probability in [0, 1): at 1 nothing would be left to rescale."""
    for name, rate in options.items():
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"{name} is a probability in [0, 1), got {rate}")
