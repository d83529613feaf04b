"""A plugin file: metrics that judge files many at a time, one of them the package vbench's bridge."""

import os
import time
from pathlib import Path
from typing import ClassVar

from evalharness.api import MetricInfo, Prompt, Verdict
from evalharness.upstream.metrics import UpstreamMetric
from evalharness.video import read_video

TEXTS = [f"clip {number}" for number in range(8)]


class Protocol:
    name = "files-like"
    summary = "eight prompts for metrics that judge files"
    samples_per_prompt = 1
    metrics: ClassVar = {"mean": "vbench.mean", "span": "vbench.span", "temporal_flickering": "vbench.none"}
    fallback_metrics: ClassVar = {"temporal_flickering": "held.temporal_flickering"}
    metrics_optional = True
    percent = True

    def prompts(self):
        return [
            Prompt(id=f"{number:04d}", text=text, dimensions=tuple(self.metrics))
            for number, text in enumerate(TEXTS)
        ]


class Mean:
    name, dimension, summary = "vbench.mean", "mean", "mean pixel, one video at a time"
    info = MetricInfo()

    def score(self, video, sample):
        visit(f"mean {sample.id}")
        return float(video.frames.mean() / 255)


class Span:
    name, dimension, summary = "vbench.span", "span", "range of pixels, three files at a time"
    info = MetricInfo()
    files_at_once = 3

    def score(self, video, sample):
        raise AssertionError("files are judged")

    def judge_files(self, files):
        verdicts = []
        for sample, path in files:
            visit(f"span {sample.id}")
            try:
                frames = read_video(path).frames
            except ValueError as error:
                verdicts.append(Verdict(error=str(error)))
            else:
                value = (int(frames.max()) - int(frames.min())) / 255
                verdicts.append(Verdict(value=value, details={"frames": len(frames)}))
        return verdicts


class Odd(Span):
    """Everything that a verdict can be."""

    name = "toy.span"

    def judge_files(self, files):
        answers = [Verdict(value=2.0), Verdict(skip="no"), Verdict(skip="dropped", left_out=True)]
        answers += [Verdict(), Verdict(value=0.5, details={"x": float("nan")}), Verdict(value=0.25)]
        return [answers[int(sample.prompt.id) % len(answers)] for sample, _ in files]


class Few(Span):
    name = "few.span"

    def judge_files(self, files):
        return []


class Flickering(UpstreamMetric):
    dimension = "temporal_flickering"
    files_at_once = 5


def visit(what):
    """One line in a log, and a stop where the test wants to kill."""
    log = os.environ.get("JUDGED")
    if log:
        with Path(log).open("a") as file:
            file.write(what + "\n")
        if os.environ.get("STOP_AT") == what:
            time.sleep(600)
    time.sleep(float(os.environ.get("JUDGE_SLOWLY", "0")))


PLUGINS = {
    "protocols": {"files-like": Protocol},
    "metrics": {
        "vbench.mean": Mean,
        "vbench.span": Span,
        "toy.span": Odd,
        "few.span": Few,
        "held.temporal_flickering": Flickering,
    },
}
