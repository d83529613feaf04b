"""One set of random networks for both sides of ``vbench_speed``: upstream's classes, and our form of them.

Sizes are the published ones, or small ones for a trial of the benchmark itself.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import math
import os
import sys
import types
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from evalharness.native import base
from evalharness.native.renaming import RENAMINGS
from evalharness.native.weights import store

TINY = {
    "dino-vitb16": {"width": 64, "depth": 2, "heads": 2, "patch": 16, "grid": 14},
    "clip-vit-b32": {"width": 128, "depth": 2, "heads": 2, "patch": 32, "embedding": 24},
    "clip-vit-b32-text": {"width": 64, "depth": 2, "heads": 2, "embedding": 24},
    "clip-vit-l14": {"width": 128, "depth": 2, "heads": 2, "patch": 14, "embedding": 24},
    "aesthetic-linear": {"in_features": 24, "out_features": 1},
    "viclip-l14": {"width": 64, "depth": 2, "heads": 2, "patch": 14, "embedding": 24}
    | {"text_width": 64, "text_depth": 2, "text_heads": 2},
    "umt-l16": {"width": 64, "depth": 2, "heads": 2, "patch": 16, "classes": 400},
}
ACTION = "playing guitar"
WEIGHTS_SEED = 0


class Attributes(dict[str, Any]):
    """What easydict gives."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def prepare_imports(folders: list[str], cache: Path, merges: Path | None) -> None:
    """Make upstream importable beside a current stack, and keep it from downloading at import.

    Args:
        folders: put behind the path of imports, so that they add what is missing here.
        cache: an empty folder that stands for VBench's cache.
        merges: CLIP's list of merges; that of the package ``clip`` by default.
    """
    sys.path += folders
    if torch.version.cuda is None:  # the C++ part of torchvision wants CUDA; its import asks for two names
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _stand_in("_kept_operators", library=library)
    _stand_in_if_absent("easydict", EasyDict=Attributes)
    _stand_in_if_absent("pkg_resources", packaging=importlib.import_module("packaging"))
    _stand_in_if_absent("numpy.lib.function_base", disp=print)
    importlib.import_module("packaging.version")
    _stand_in_if_absent("requests")
    _stand_in_if_absent("scipy", __path__=[], interpolate=None)  # named by RAFT's training, not used here
    _stand_in_if_absent("scipy.special", factorial=math.factorial)
    _bare_parents("pyiqa")
    file = (
        merges or Path(str(importlib.import_module("clip").__file__)).parent / "bpe_simple_vocab_16e6.txt.gz"
    )
    (cache / "ViCLIP").mkdir(parents=True, exist_ok=True)
    (cache / "ViCLIP" / "bpe_simple_vocab_16e6.txt.gz").write_bytes(file.read_bytes())
    os.environ["VBENCH_CACHE_DIR"] = str(cache)


def _bare_parents(name: str) -> None:
    """Make submodules of package ``name`` importable where its own imports lack something."""
    try:
        importlib.import_module(name)
    except ImportError:
        spec = importlib.machinery.PathFinder.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            return
        [folder] = spec.submodule_search_locations
        for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == name]:
            del sys.modules[loaded]
        for part in ("", "archs", "data", "utils"):
            path = [str(Path(folder) / part)]
            _stand_in(f"{name}.{part}".rstrip("."), __path__=path)


def _stand_in_if_absent(name: str, **members: Any) -> None:
    try:
        importlib.import_module(name)
    except ImportError:
        _stand_in(name, **members)


def _stand_in(name: str, **members: Any) -> None:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(members)
    sys.modules[name] = module


def build(name: str, tiny: bool, device: str = "cpu") -> nn.Module:
    """Upstream's network of that name with random weights, drawn on ``device``, in float32.

    Raises:
        ImportError: its package is not there.
    """
    spec = {**base.SPECS.get(name, {}), **(TINY.get(name, {}) if tiny else {})}
    try:
        with torch.device(device):
            network = _BUILDERS[name](spec).to(device)
    except RuntimeError:  # a class that mixes devices while it is built
        network = _BUILDERS[name](spec).to(device)
    return _sane(network)


def shelve(name: str, network: nn.Module, folder: Path) -> None:
    """Put the network's weights into a weights folder, as the conversion of a published file does."""
    state = dict(network.state_dict())
    if name in ("clip-vit-b32", "clip-vit-l14"):
        store(name, RENAMINGS["clip"](state), folder)
        if name == "clip-vit-b32":
            store("clip-vit-b32-text", RENAMINGS["clip_text"](state), folder)
        return
    rule = {"raft-things": "raft", "viclip-l14": "viclip", "umt-l16": "umt", "musiq-spaq": "musiq"}.get(
        name, "as_is"
    )
    store(name, RENAMINGS[rule](state), folder)


def use_sizes(tiny: bool) -> None:
    """Let the native side accept the sizes that ``build`` makes."""
    if tiny:
        base.SPECS = MappingProxyType({**base.SPECS, **TINY})


def _sane(network: nn.Module) -> nn.Module:
    """Weights that keep activations of order one; fixed tables stay."""
    generator = torch.Generator(next(network.parameters()).device).manual_seed(WEIGHTS_SEED)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not tensor.is_floating_point() or name in ("logit_scale", "temp"):
                continue
            if "running_var" in name or (tensor.dim() == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif name != "pos_embed" or tensor.shape[1] < 1000:
                fan = tensor[0].numel() if tensor.dim() > 1 else 100
                tensor.normal_(0.0, fan**-0.5, generator=generator)
    return network.eval()


def _clip(spec: dict[str, int], text: dict[str, int]) -> nn.Module:
    network: nn.Module = importlib.import_module("clip.model").CLIP(
        spec["embedding"], 224, spec["depth"], spec["width"], spec["patch"],
        77, 49408, text["width"], text["heads"], text["depth"],
    )  # fmt: skip
    return network.float()


def _clip_b32(spec: dict[str, int]) -> nn.Module:
    small = spec["width"] < 768
    return _clip(spec, TINY["clip-vit-b32-text"] if small else dict(base.SPECS["clip-vit-b32-text"]))


def _clip_l14(spec: dict[str, int]) -> nn.Module:
    small = spec["width"] < 1024
    return _clip(spec, TINY["clip-vit-b32-text"] if small else {"width": 768, "heads": 12, "depth": 12})


def _raft(spec: dict[str, int]) -> nn.Module:
    del spec
    raft = importlib.import_module("vbench.dynamic_degree").RAFT
    network: nn.Module = raft(Attributes(small=False, mixed_precision=False, alternate_corr=False))
    return network


def _viclip(spec: dict[str, int]) -> nn.Module:
    package = "vbench.third_party.ViCLIP"
    whole = importlib.import_module(f"{package}.viclip").ViCLIP
    network: Any = whole.__new__(whole)
    nn.Module.__init__(network)
    network.max_txt_l = 32
    network.vision_encoder = importlib.import_module(f"{package}.viclip_vision").VisionTransformer(
        224, spec["patch"], spec["width"], spec["depth"], spec["heads"], output_dim=spec["embedding"]
    )
    width = spec.get("text_width", 768), spec.get("text_heads", 12), spec.get("text_depth", 12)
    text = importlib.import_module(f"{package}.viclip_text").CLIP_TEXT
    network.text_encoder = text(spec["embedding"], 32, 49408, *width, 0)
    return network  # type: ignore[no-any-return]


def _umt(spec: dict[str, int]) -> nn.Module:
    build_ = importlib.import_module("vbench.third_party.umt.models.modeling_finetune").VisionTransformer
    network: nn.Module = build_(
        patch_size=16, embed_dim=spec["width"], depth=spec["depth"], num_heads=spec["heads"], qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), all_frames=16, tubelet_size=1,
        num_classes=spec["classes"], use_mean_pooling=True,
    )  # fmt: skip
    return network


def _musiq(spec: dict[str, int]) -> nn.Module:
    del spec
    network: nn.Module = importlib.import_module("pyiqa.archs.musiq_arch").MUSIQ(pretrained=False)
    return network


def _ours(name: str, spec: dict[str, int]) -> nn.Module:
    """DINO's code is in no package; upstream takes any module, so both sides share ours."""
    del spec
    return base._build(name)


_BUILDERS = {
    "dino-vitb16": partial(_ours, "dino-vitb16"),
    "clip-vit-b32": _clip_b32,
    "clip-vit-l14": _clip_l14,
    "aesthetic-linear": lambda spec: nn.Linear(**spec),
    "raft-things": _raft,
    "viclip-l14": _viclip,
    "umt-l16": _umt,
    "musiq-spaq": _musiq,
}
