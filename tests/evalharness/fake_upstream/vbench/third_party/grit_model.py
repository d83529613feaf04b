import sys


class DenseCaptioning:
    def run_caption_tensor(self, text):
        if "broken" in text:
            raise RuntimeError("the detector has no kernel")
        if "crowded" in text:
            boxes = sys.modules["torchvision"].ops.boxes
            return [(name,) for name in boxes.kept()]
        return [("cat",)] if "cat" in text else []
