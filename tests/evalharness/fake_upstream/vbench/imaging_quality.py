from vbench.utils import entries


def compute_imaging_quality(json_dir, device, submodules, **kwargs):
    paths = [entry["video_list"][0] for entry in entries(json_dir, "imaging_quality")]
    return 0.5, [
        {"video_path": path, "video_results": 50.0 * (1 + 2 * index)} for index, path in enumerate(paths)
    ]
