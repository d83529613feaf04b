"""``--attention``: which of torch's attention kernels the transformer runs, the same for every row.

The choice holds for all that calls ``scaled_dot_product_attention`` while the transformer runs: also for
CogVideoX, whose processor does not look at diffusers' own switch. Text encoder and VAE keep torch's
choice. A kernel that cannot run a model's attention is an error, not a quiet change to another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn

__all__ = ["CHOICES", "DEFAULT", "choose_", "chosen", "on_cuda_only"]

DEFAULT = "default"
_BACKENDS = {
    "math": "MATH",
    "flash": "FLASH_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
    "cudnn": "CUDNN_ATTENTION",
}
CHOICES = (DEFAULT, *_BACKENDS)


def on_cuda_only(name: str) -> bool:
    """Whether a choice needs a GPU."""
    return name in ("efficient", "cudnn")


def choose_(module: nn.Module, name: str) -> nn.Module:
    """Let every call of ``module`` run its attention by ``name`` of ``CHOICES``; in place.

    Copies of the module do the same. Choosing again changes the choice.

    Returns:
        The same ``module``.
    """
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), _Within):
                del hooks[key]
    if name != DEFAULT:
        within = _Within(name)
        module.register_forward_pre_hook(within.enter)
        module.register_forward_hook(within.leave, always_call=True)
    return module


def chosen(module: nn.Module) -> str:
    """What was chosen for ``module``."""
    owners = (getattr(hook, "__self__", None) for hook in module._forward_pre_hooks.values())
    return next((owner.name for owner in owners if isinstance(owner, _Within)), DEFAULT)


class _Within:
    """Enters torch's own context before a call and leaves it after, also after one that failed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._entered: list[AbstractContextManager[Any]] = []

    def enter(self, module: nn.Module, args: Any) -> None:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        context = sdpa_kernel(getattr(SDPBackend, _BACKENDS[self.name]))
        context.__enter__()
        self._entered.append(context)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._entered.pop().__exit__(None, None, None)
