import os


def compute_human_action(json_dir, device, submodules, **kwargs):
    os._exit(7)
