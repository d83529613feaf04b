import json
from pathlib import Path


def init_submodules(dimension_list, local=False, read_frame=False):
    print("noise on standard output, as the real one makes")
    return {name: {"local": local, "name": name} for name in dimension_list}


def entries(json_dir, dimension):
    listed = json.loads(Path(json_dir).read_text())
    return [entry for entry in listed if dimension in entry["dimension"]]


def brightness(path):
    import cv2

    capture = cv2.VideoCapture(path)
    _, frame = capture.read()
    return float(frame.mean() / 255)
