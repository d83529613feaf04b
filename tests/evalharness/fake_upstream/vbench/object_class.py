import torch

from vbench.third_party.grit_model import DenseCaptioning
from vbench.utils import entries


def seen(model, text):
    try:
        return model.run_caption_tensor(text)[0][0]
    except Exception:  # as the package has it
        return None


def compute_object_class(json_dir, device, submodules, **kwargs):
    model = DenseCaptioning()
    rows = [
        {
            "video_path": entry["video_list"][0],
            "video_results": float(
                seen(model, entry["prompt_en"]) == entry["auxiliary_info"]["object_class"]["object"]
            ),
            "gradients": torch.is_grad_enabled(),
        }
        for entry in entries(json_dir, "object_class")
    ]
    return 0.0, rows
