import os

from vbench.utils import entries


def compute_color(json_dir, device, submodules, **kwargs):
    rows = [
        {"video_path": entry["video_list"][0], "video_results": 1.0}
        | {"label": entry["auxiliary_info"]["color"], "device": repr(device)}
        | {"compiles": os.environ.get("TORCHDYNAMO_SUPPRESS_ERRORS")}
        for entry in entries(json_dir, "color")
        if entry["auxiliary_info"]["color"]["color"] == "red"
    ]
    return len(rows) / len(rows), rows
