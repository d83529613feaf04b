import os
from pathlib import Path

from vbench.utils import brightness, entries


def torch_home():
    folder = Path(os.environ.get("TORCH_HOME", "none")) / "hub" / "checkpoints"
    return sorted(item.name for item in folder.glob("*"))


def compute_temporal_flickering(json_dir, device, submodules, **kwargs):
    rows = []
    for entry in entries(json_dir, "temporal_flickering"):
        [path] = entry["video_list"]
        if "explode" in entry["prompt_en"]:
            raise RuntimeError("cannot take this one")
        if "skipped" in entry["prompt_en"]:
            continue
        value = float("nan") if "nan" in entry["prompt_en"] else brightness(path)
        rows.append(
            {
                "video_path": path,
                "video_results": value,
                "name": Path(path).name,
                "cwd": [str(item) for item in Path().iterdir()],
                "device": repr(device),
                "environment": {key: os.environ.get(key) for key in ("RANK", "VBENCH_CACHE_DIR")},
                "torch_home": torch_home(),
                "odd": float("inf"),
            }
        )
    return 0.0, rows
