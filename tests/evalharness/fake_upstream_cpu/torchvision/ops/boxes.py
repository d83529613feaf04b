import torch


def _assert_has_ops():
    raise RuntimeError("Couldn't load custom C++ ops")


def nms(boxes, scores, iou_threshold):
    _assert_has_ops()
    return torch.ops.torchvision.nms(boxes, scores, iou_threshold)


def kept():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [8, 8, 9, 9]])
    return [("dog", "cat", "owl")[i] for i in nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5)]
