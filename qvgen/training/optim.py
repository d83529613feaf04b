"""AdamW over four parameter groups, each with its own learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qvgen.auxiliary import Phi
from qvgen.quantizers import ActivationQuantizer, WeightQuantizer
from qvgen.static import StaticActivationQuantizer
from qvgen.training.host_moments import HostMomentsAdamW
from qvgen.training.recipe import TrainRecipe

_GROUP_OF_MODULE: tuple[tuple[type[nn.Module], str], ...] = (
    (WeightQuantizer, "scales"),
    (Phi, "phi"),
    (ActivationQuantizer, "clips"),
    (StaticActivationQuantizer, "clips"),
)
_DECAYED = ("weights", "phi")


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters by group: ``weights``, ``scales``, ``phi``, ``clips``; empty ones left out."""
    group_of: dict[int, str] = {}
    for module in model.modules():
        for kind, group in _GROUP_OF_MODULE:
            if isinstance(module, kind):
                group_of.update({id(p): group for p in module.parameters()})
    groups: dict[str, list[nn.Parameter]] = {"weights": [], "scales": [], "phi": [], "clips": []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[group_of.get(id(parameter), "weights")].append(parameter)
    return {name: members for name, members in groups.items() if members}


def build_optimizer(model: nn.Module, recipe: TrainRecipe) -> torch.optim.AdamW:
    """AdamW, one fused kernel per group; ``base_lr`` and ``name`` are kept in each group.

    With ``recipe.offload: moments`` those of the weights rest on the host, ``recipe.offload_share`` of them.
    """
    groups: list[dict[str, Any]] = [
        {
            "name": name,
            "params": members,
            "lr": getattr(recipe, f"lr_{name}"),
            "base_lr": getattr(recipe, f"lr_{name}"),
            "weight_decay": recipe.weight_decay if name in _DECAYED else 0.0,
        }
        for name, members in parameter_groups(model).items()
    ]
    graph = recipe.compile == "graph"
    if graph:  # a recorded step reads the rate from where it lay
        for group in groups:
            group["lr"] = torch.tensor(group["lr"], device=group["params"][0].device)
    options: dict[str, Any] = {"betas": recipe.betas, "eps": recipe.eps, "fused": True, "capturable": graph}
    if recipe.offload == "moments":
        return HostMomentsAdamW(groups, share=recipe.offload_share, **options)
    return torch.optim.AdamW(groups, **options)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group ``factor`` times its peak learning rate."""
    for group in optimizer.param_groups:
        rate = group["base_lr"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


@torch.no_grad()
def reset_state(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """Forget both moments and the step count of ``parameters``, as if they were new."""
    for parameter in parameters:
        for value in optimizer.state.get(parameter, {}).values():
            value.zero_()


def resting_moments(optimizer: torch.optim.Optimizer) -> set[int]:
    """The ids of the parameters whose moments are kept as ``qvgen.training.host_moments`` does."""
    return optimizer.resting if isinstance(optimizer, HostMomentsAdamW) else set()
