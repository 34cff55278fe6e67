"""Counts of a piece of work, real or imagined: FLOPs, and the bytes of the tensors that live.

Inside :func:`imagined` tensors have shapes and dtypes but no data, so that a step of any network is counted in seconds
and in little memory. They say that they lie on the CPU: autocast, attention and optimizers take the ways of the CPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_ATEN = torch.ops.aten
_META = torch.device("meta")
_MATH, _FUSED = 0, 1  # answers of the question which kernel of attention is taken


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape))


# PyTorch counts the attention kernels of GPUs, and leaves out that of the CPU.
_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and attention; a multiplication and an addition are two."""
    with _Flops() as counter:
        work()
    return counter.total


class _Flops(TorchDispatchMode):
    """Applies PyTorch's formulas. Its own ``FlopCounterMode`` keeps tensors alive, to say which module they are of."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is None and torch.is_inference_mode_enabled() and func is not torch.ops.prim.device.default:
            with self:  # what is made of others arrives whole
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if formula is not None:
            self.total += int(formula(*args, **kwargs, out_val=result))
        return result


# ------------------------------------------------------------------ tensors without data


class _Imagined(Tensor):
    """A tensor without data that says it lies on the CPU; ``of_meta`` has its shape, its dtype and its storage."""

    of_meta: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, of_meta: Tensor) -> _Imagined:
        tensor: _Imagined = Tensor._make_wrapper_subclass(
            cls,
            of_meta.size(),
            strides=of_meta.stride(),
            storage_offset=of_meta.storage_offset(),
            dtype=of_meta.dtype,
            device=torch.device("cpu"),
        )
        tensor.of_meta = of_meta
        return tensor

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func}: a tensor without data was used outside imagined()")


class _Imagination(TorchDispatchMode):
    """Computes shapes; and values, of what depends on real tensors alone, such as row numbers and counts of steps."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves, spec = tree_flatten((args, kwargs))
        ours = {id(leaf.of_meta): leaf for leaf in leaves if isinstance(leaf, _Imagined)}
        if func is _ATEN._fused_sdp_choice.default:
            return _kernel_of_attention(*args, **kwargs)
        if not ours and any(isinstance(leaf, Tensor) for leaf in leaves):
            return func(*args, **kwargs)
        args, kwargs = tree_unflatten([_without_data(leaf) for leaf in leaves], spec)
        if not ours and any(argument.name == "device" for argument in func._schema.arguments):
            kwargs["device"] = _META
        results = func(*args, **kwargs)

        def known_or_new(tensor: Tensor) -> Tensor:
            # What an operation in place returns is what it was given.
            return ours[id(tensor)] if id(tensor) in ours else _Imagined(tensor)

        return tree_map_only(Tensor, known_or_new, results)


def _without_data(leaf: Any) -> Any:
    if isinstance(leaf, _Imagined):
        return leaf.of_meta
    if isinstance(leaf, torch.Generator):
        return None
    if isinstance(leaf, torch.device):
        return _META
    return leaf.to(_META) if isinstance(leaf, Tensor) else leaf


def _kernel_of_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0, *_: Any, **__: Any
) -> int:
    plain = query.dim() == key.dim() == value.dim() == 4 and query.shape[-1] == value.shape[-1]
    return _FUSED if plain and dropout == 0.0 and (mask is None or not mask.requires_grad) else _MATH


@contextmanager
def imagined() -> Iterator[None]:
    """Inside, new tensors have no data; asking for a value of one raises RuntimeError.

    A module comes in by :func:`without_weights`. Code that runs inside must not ask a result for its value, as no
    training step of the kit does.
    """
    with _Imagination():
        yield


def without_weights(module: nn.Module) -> nn.Module:
    """A module of the meta device, with its weights and buffers inside :func:`imagined`."""
    made: dict[int, Any] = {}
    with imagined():
        for layer in module.modules():
            for name, parameter in layer._parameters.items():
                if parameter is not None:
                    if id(parameter) not in made:
                        tensor = _Imagined(parameter.detach().to(_META))
                        made[id(parameter)] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
                    layer._parameters[name] = made[id(parameter)]
            for name, buffer in layer._buffers.items():
                layer._buffers[name] = None if buffer is None else _Imagined(buffer.to(_META))
    return module


# ------------------------------------------------------------------ bytes


class LiveBytes(TorchDispatchMode):
    """Counts, while it is active, the bytes of the tensors that live.

    They are of two kinds: those that do not depend on the number of rows (weights, and whatever is computed of such
    alone) and the others, which grow with it. So one count says the peak of any number of rows.

    Attributes:
        fixed: bytes that do not depend on the number of rows.
        rows: the others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fixed = self.rows = 0
        self._sizes: dict[int, tuple[int, bool]] = {}
        self._moments: list[tuple[int, int]] = []

    def hold(self, tensor: Tensor) -> None:
        """Counts the storage of a tensor as one that does not depend on the number of rows."""
        self._add(tensor, fixed=True)

    def restart(self) -> None:
        """Forgets what was before the present moment."""
        self._moments = [(self.fixed, self.rows)]

    def peak(self, factor: float = 1.0) -> int:
        """The most bytes that have lived at once since :meth:`restart`.

        Args:
            factor: with so many times the rows.
        """
        return round(max(fixed + factor * rows for fixed, rows in self._moments))

    def _add(self, tensor: Tensor, fixed: bool) -> None:
        storage = (tensor.of_meta if isinstance(tensor, _Imagined) else tensor).untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        before = self._sizes.get(key)
        if before is None:
            weakref.finalize(storage, self._remove, key).atexit = False
        elif before[0] == size and (before[1] or not fixed):
            return
        else:
            self._count(*before, sign=-1)
            fixed = fixed or before[1]
        self._sizes[key] = size, fixed
        self._count(size, fixed)
        if self._moments and self._moments[-1][0] <= self.fixed and self._moments[-1][1] <= self.rows:
            self._moments.pop()
        self._moments.append((self.fixed, self.rows))

    def _remove(self, key: int) -> None:
        self._count(*self._sizes.pop(key), sign=-1)

    def _count(self, size: int, fixed: bool, sign: int = 1) -> None:
        if fixed:
            self.fixed += sign * size
        else:
            self.rows += sign * size

    def _is_fixed(self, tensor: Tensor) -> bool:
        storage = (tensor.of_meta if isinstance(tensor, _Imagined) else tensor).untyped_storage()
        return self._sizes.get(storage._cdata, (0, False))[1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        fixed = bool(inputs) and all(self._is_fixed(tensor) for tensor in inputs)
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf, fixed)
        return result
