"""The example plugin for released QVGen checkpoints, on a tiny pipeline and a file in the released layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from torch import nn

from evalharness.cli.main import main

PLUGIN = Path(__file__).parents[3] / "docs" / "examples" / "qvgen_released.py"


@pytest.fixture
def released(folders: Callable[[str], Path], tmp_path: Path) -> Path:
    """The tiny pipeline's own weights, every linear in the released form."""
    model = WanTransformer3DModel.from_pretrained(folders("wan2.1"), subfolder="transformer")
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            weight = tensors.pop(f"{name}.weight")
            tensors[f"{name}.w"] = weight
            if module.bias is not None:
                tensors[f"{name}.b"] = tensors.pop(f"{name}.bias")
            span = weight.amax(1, keepdim=True) - weight.amin(1, keepdim=True)
            tensors[f"{name}.wquantizer.scale"] = span * 0.85 / 15
            tensors[f"{name}.wquantizer.zero_point"] = torch.full((len(weight), 1), 7.5)
            for side in ("upper", "lower"):
                tensors[f"{name}.aquantizer.{side}"] = torch.linspace(0.0, 4.0, 50)
    folder = tmp_path / "released"
    model.save_config(folder)
    save_file(
        {name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()},
        folder / "diffusion_pytorch_model.safetensors",
    )
    return folder


def test_a_released_checkpoint_is_evaluated(
    released: Path, run: Callable[..., list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    """Both choices of clips and exact codes, as three rows; the counter begins anew with each video."""
    rows = {
        "last": {"clip_choice": "last"},
        "counter": {"clip_choice": "counter"},
        "exact": {"mode": "exact"},
    }
    variants = {
        name: {"method": "qvgen-released", "options": {"path": str(released), **options}}
        for name, options in rows.items()
    }
    again = run("wan2.1", "--plugin", str(PLUGIN), "--bits", "4", "--skip-layers", "none", "--methods",
                "last,counter,exact", "--variants", json.dumps(variants), "--no-profile",
                limit=2, steps=3)  # fmt: skip
    made = {name: sorted(Path(f"out/cells/{name}-w4a4-s0/videos").glob("*.mp4")) for name in rows}
    videos = {name: [path.read_bytes() for path in paths] for name, paths in made.items()}
    assert all(len(found) == 2 for found in videos.values())
    assert len({found[0] for found in videos.values()}) == 3
    made["counter"][1].unlink()
    assert main(again) == 0  # the second video alone, so without the first one's calls before it
    assert made["counter"][1].read_bytes() == videos["counter"][1]
    config = released / "config.json"
    config.write_text(config.read_text() + " ")
    made["last"][0].unlink()
    assert main(again) == 1
    assert "other than when the cell was made" in capfd.readouterr().err
    assert main([*again, "--skip-layers", "std", "--output", "other"]) == 1
    assert "give --skip-layers none" in capfd.readouterr().err
