"""A plugin file: a small protocol with everything that VBench's has, and cheap metrics."""

from typing import ClassVar

from evalharness.api import LeftOut, MetricInfo, Prompt, Total, TotalTerm

TEXTS = ("a cat", "A cat", "up/down", "a cat", "..", "still life - red")


class Protocol:
    name = "vbench-like"
    summary = "colliding, repeated and path-unsafe prompts"
    samples_per_prompt = 2
    samples_by_dimension: ClassVar = {"flicker": 4}
    metrics: ClassVar = {name: f"vbench.{name}" for name in ("brightness", "flicker", "rare")}
    metrics_optional = True
    percent = True
    totals = (
        Total(name="light", terms={"brightness": TotalTerm(low=0.2), "flicker": TotalTerm(weight=0.5)}),
        Total(name="all", terms={"brightness": TotalTerm(), "rare": TotalTerm()}),
    )

    def prompts(self):
        dimensions = [("brightness",)] * 3 + [("brightness", "rare")] * 2 + [("flicker",)]
        return [
            Prompt(id=f"{number:04d}", text=text, dimensions=names)
            for number, (text, names) in enumerate(zip(TEXTS, dimensions, strict=True))
        ]


class Brightness:
    name, dimension, summary = "vbench.brightness", "brightness", "mean pixel"
    info = MetricInfo()

    def score(self, video, sample):
        return float(video.frames.mean() / 255)


class Flicker:
    name, dimension, summary = "vbench.flicker", "flicker", "mean pixel of videos with an odd number"
    info = MetricInfo()

    def score(self, video, sample):
        if sample.index % 2 == 0:
            raise LeftOut("not static")
        return float(video.frames.mean() / 255)


PLUGINS = {
    "protocols": {"vbench-like": Protocol},
    "metrics": {"vbench.brightness": Brightness, "vbench.flicker": Flicker},
}
