"""Metrics ``upstream.<dimension>``: the unmodified package ``vbench`` judges, in its own environment.

They are chosen with ``--metric upstream.scene``, and by VBench's protocols where no native scorer is
installed. What is missing is a skip that says which command gets it.
"""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from evalharness.api import MetricInfo, Sample, Skip, Verdict, Video, WeightFile
from evalharness.hash_memory import HashMemory
from evalharness.upstream.driver import Scored, Upstream, UpstreamVideo, VideoScore, score_dimensions
from evalharness.upstream.environment import default_folder, find, has_detectron2, pins_hash
from evalharness.upstream.files import cache_folder, files_of, lacking
from evalharness.upstream.pins import NEEDS_DETECTRON2

__all__ = ["ENVIRONMENT_VARIABLE", "UpstreamMetric", "environment_folder"]

ENVIRONMENT_VARIABLE = "EVALHARNESS_VBENCH"
ABSENT = "absent"
FETCH = "python -m evalharness fetch"
_COSINES = ("appearance_style", "overall_consistency", "temporal_style")
_COLD_SECONDS = 2 * 3600.0


def environment_folder() -> Path:
    """``$EVALHARNESS_VBENCH``, else where ``fetch vbench`` makes the environment."""
    given = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(given) if given else default_folder()


class UpstreamMetric:
    """One dimension of the package; its files are judged many at a time, in one process.

    Attributes:
        files_at_once: videos that one process judges; a kill loses no more of them.
        device: ``cpu`` or ``cuda``; the score stage sets it to the run's.
    """

    name: ClassVar[str]
    dimension: ClassVar[str]
    summary: ClassVar[str]
    version: ClassVar[int] = 1
    files_at_once: ClassVar[int] = 64

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = f"upstream.{cls.dimension}"
        cls.summary = f"{cls.dimension.replace('_', ' ')} by the package vbench 0.1.5 itself"

    def __init__(self) -> None:
        self.device = "cpu"
        self.folder = cache_folder()
        self.upstream = _environment()

    @functools.cached_property
    def info(self) -> MetricInfo:
        """The hashes of environment and weights are in it: when they come or change, scores go stale."""
        return MetricInfo(
            low=-1.0 if self.dimension in _COSINES else 0.0,
            version=self.version,
            cost_ms=5000.0,
            faithful_to="vbench, the package itself",
            weights=(self._environment_mark(), *self._weights()),
        )

    @property
    def missing(self) -> list[str]:
        """What the dimension cannot run without, in few words."""
        gone = [] if self.upstream is not None else ["environment"]
        if self._lacks_detectron2():
            gone.append("detectron2")
        return [*gone, *(Path(file.path).name for file in lacking(self.dimension, self.folder))]

    def score(self, video: Video, sample: Sample) -> float:
        """Only files can be judged.

        Raises:
            Skip: always.
        """
        del video, sample
        raise Skip(self._reason() or f"{self.name} judges files: evalharness score FOLDER")

    def judge_files(self, files: Sequence[tuple[Sample, Path]]) -> list[Verdict]:
        """A verdict on each file, by one process; a reason for each where it cannot run."""
        reason = self._reason()
        if reason is not None:
            return [Verdict(skip=reason) for _ in files]
        assert self.upstream is not None
        # Numbers, since cells share their samples' ids.
        videos = [UpstreamVideo(f"{n:06d}", path, sample.prompt) for n, (sample, path) in enumerate(files)]
        [scored] = score_dimensions(
            self.upstream, [self.dimension], videos, device=self.device, timeout=_COLD_SECONDS
        )
        return [_verdict(scored, video.id) for video in videos]

    def _reason(self) -> str | None:
        """Why nothing can be judged, with the command that mends it; None if it can."""
        if self.upstream is None:
            return f"the environment of the package vbench is not there; make it with: {FETCH} vbench"
        if self._lacks_detectron2():
            return (
                f"{self.dimension} needs detectron2, which is not on PyPI; build it with: "
                f"{FETCH} vbench{self._place()} --detectron2 (a checkout's folder may follow)"
            )
        gone = lacking(self.dimension, self.folder)
        if gone:
            names = ", ".join(file.path for file in gone)
            return f"weights {names} are missing; get them with: {FETCH} weights --only {self.dimension}"
        return None

    def _lacks_detectron2(self) -> bool:
        if self.dimension not in NEEDS_DETECTRON2 or self.upstream is None:
            return False
        return not has_detectron2(self.upstream.python.parent.parent)

    def _place(self) -> str:
        folder = environment_folder()
        return "" if folder == default_folder() else f" --env {shlex.quote(str(folder))}"

    def _environment_mark(self) -> WeightFile:
        there = self.upstream is not None and not self._lacks_detectron2()
        return WeightFile(
            path="environment of vbench 0.1.5", sha256=pins_hash() if there else ABSENT, licence="Apache-2.0"
        )

    def _weights(self) -> list[WeightFile]:
        memory = HashMemory(environment_folder().parent / "hashes")
        marks = []
        for file in files_of([self.dimension]):
            path = self.folder / file.path
            sha256 = memory.sha256(path) if path.is_file() else ABSENT
            marks.append(WeightFile(path=file.path, sha256=sha256, licence=file.licence))
        memory.save()
        return marks


def _environment() -> Upstream | None:
    made = find(environment_folder())
    if made is None:
        return None
    return Upstream(python=made.python, path=made.path, cache=cache_folder(), local=True)


def _verdict(scored: Scored, number: str) -> Verdict:
    found = scored.videos.get(number) or VideoScore(None, scored.error or "vbench did not answer")
    if found.left_out:
        return Verdict(skip="vbench drops the video by the dimension's own rule", left_out=True)
    details = {**found.extras, "versions": dict(scored.versions)} if found.error is None else {}
    return Verdict(value=found.value, error=found.error, details=details)


class AestheticQuality(UpstreamMetric):
    dimension = "aesthetic_quality"


class AppearanceStyle(UpstreamMetric):
    dimension = "appearance_style"


class BackgroundConsistency(UpstreamMetric):
    dimension = "background_consistency"


class Color(UpstreamMetric):
    dimension = "color"


class DynamicDegree(UpstreamMetric):
    dimension = "dynamic_degree"


class HumanAction(UpstreamMetric):
    dimension = "human_action"


class ImagingQuality(UpstreamMetric):
    dimension = "imaging_quality"


class MotionSmoothness(UpstreamMetric):
    dimension = "motion_smoothness"


class MultipleObjects(UpstreamMetric):
    dimension = "multiple_objects"


class ObjectClass(UpstreamMetric):
    dimension = "object_class"


class OverallConsistency(UpstreamMetric):
    dimension = "overall_consistency"


class Scene(UpstreamMetric):
    dimension = "scene"


class SpatialRelationship(UpstreamMetric):
    dimension = "spatial_relationship"


class SubjectConsistency(UpstreamMetric):
    dimension = "subject_consistency"


class TemporalStyle(UpstreamMetric):
    dimension = "temporal_style"
