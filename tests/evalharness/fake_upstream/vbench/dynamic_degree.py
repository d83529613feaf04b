def compute_dynamic_degree(json_dir, device, submodules, **kwargs):
    raise FileNotFoundError("raft-things.pth")
