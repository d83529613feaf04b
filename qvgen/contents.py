"""What a file's tensor must be beyond its name and shape, before it becomes part of a model."""

from __future__ import annotations

import torch
from torch import Tensor


def check_contents(
    where: str,
    tensor: Tensor,
    like: torch.dtype,
    *,
    finite: bool = True,
    positive: bool = False,
    within: tuple[float, float] | None = None,
    whole: bool = False,
) -> None:
    """Raise ValueError unless ``tensor`` can stand where the model has a tensor of dtype ``like``.

    Args:
        where: file and key, the beginning of the message.
        tensor: as read.
        like: dtype in the model. Floating dtypes go for each other, any other one for itself only.
        finite: whether NaN and infinity are refused.
        positive: whether zero and negative numbers are refused too.
        within: smallest and largest number allowed.
        whole: whether fractions are refused.
    """
    if tensor.dtype != like and not (like.is_floating_point and tensor.is_floating_point()):
        wanted = "floating-point numbers" if like.is_floating_point else _name(like)
        raise ValueError(f"{where} holds {_name(tensor.dtype)}; the model needs {wanted}")
    if not tensor.is_floating_point():
        return
    if positive and not bool((tensor.isfinite() & (tensor > 0)).all()):
        raise ValueError(f"{where}: holds a number that is not positive and finite")
    if finite and not bool(tensor.isfinite().all()):
        raise ValueError(f"{where}: holds NaN or infinity")
    if within is not None and not bool(((tensor >= within[0]) & (tensor <= within[1])).all()):
        raise ValueError(f"{where}: holds a number outside of {within[0]:g} to {within[1]:g}")
    if whole and not bool((tensor == tensor.round()).all()):
        raise ValueError(f"{where}: holds a fraction, and must be whole numbers")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
