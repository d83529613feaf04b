"""Numbers for the training log. Each waits for the device, so they are taken at log lines only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from qvgen.api import quant_layers
from qvgen.auxiliary import Phi, singular_values
from qvgen.training.parallel import whole, whole_phis

# The share of singular values this many times below the largest is what the paper plots (Fig. 4).
NEGLIGIBLE = 14.0


@torch.no_grad()
def layer_gradient_norms(model: nn.Module) -> dict[str, float]:
    """``grad_norm/<layer>``: norm of the gradients, as they stand, of each quantized layer."""
    norms = {
        f"grad_norm/{name}": torch.stack(
            [whole(p.grad.norm()) for p in layer.parameters() if p.grad is not None] or [torch.zeros(())]
        ).norm()
        for name, layer in quant_layers(model)
    }
    return dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True)) if norms else {}


@torch.no_grad()
def clip_ratios(model: nn.Module) -> dict[str, float]:
    """Mean, least and largest learnt clip ratio of all layers and ends; empty without clips."""
    found = [r for _, layer in quant_layers(model) for r in layer.aquantizer.ratios() or ()]
    if not found:
        return {}
    ratios = torch.cat([whole(r).flatten() for r in found])
    mean, low, high = torch.stack([ratios.mean(), ratios.min(), ratios.max()]).tolist()
    return {"clip_mean": mean, "clip_min": low, "clip_max": high}


@torch.no_grad()
def spectrum(phis: Sequence[Phi]) -> dict[str, float]:
    """Of Phi with gamma applied: mean over layers of sigma_1, and of the share of negligible values.

    ``phi_negligible`` counts the singular values at least 14 times smaller than the layer's
    largest (all of a Phi that is zero), among all columns the layer began with, so columns that
    are gone count.
    """
    values = singular_values(whole_phis(phis))
    largest = torch.stack([v[0] for v in values]).mean()
    share = torch.stack([(v * NEGLIGIBLE <= v[0]).float().mean() for v in values]).mean()
    sigma, negligible = torch.stack([largest, share]).tolist()
    return {"phi_sigma1": sigma, "phi_negligible": negligible}


def layer_spectra(model: nn.Module) -> dict[str, str]:
    """``phi_sigma/<layer>``: the layer's singular values, descending, as text."""
    layers = [(name, layer.phi) for name, layer in quant_layers(model) if layer.phi is not None]
    values = singular_values(whole_phis([phi for _, phi in layers]))
    return {
        f"phi_sigma/{name}": " ".join(f"{v:.4g}" for v in row.tolist())
        for (name, _), row in zip(layers, values, strict=True)
    }
