"""A CUDA torchvision beside a CPU torch: its import fails until its operators are declared."""

import torch

if not hasattr(torch.ops.torchvision, "nms"):
    raise RuntimeError("operator torchvision::nms does not exist")
