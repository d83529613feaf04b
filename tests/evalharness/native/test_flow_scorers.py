"""RAFT and what it judges: one pair of frames at a time, as VBench describes it."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from evalharness.api import LeftOut, Prompt, Sample, Skip, Video
from evalharness.native import flow
from evalharness.native.dynamic_degree import DynamicDegree, flow_statistic
from evalharness.native.flow import pair_strengths
from evalharness.native.raft import Raft
from evalharness.native.static_filter import StaticFilter, is_static
from evalharness.native.temporal_flickering import TemporalFlickering

Clip = Callable[..., np.ndarray]
SAMPLE = Sample(prompt=Prompt(id="0000", text="", dimensions=()), index=0, seed=0)


def test_raft_has_the_published_size() -> None:
    """5,257,536 with torchvision's count, which holds parameters alone."""
    assert sum(parameter.numel() for parameter in Raft().parameters()) == 5_257_536


def strength(network: Raft, first: np.ndarray, second: np.ndarray, share: float) -> float:
    """One pair as VBench says: pad, 20 iterations, mean of the largest share."""
    height, width = first.shape[:2]
    down, across = (8 - height % 8) % 8, (8 - width % 8) % 8
    border = (across // 2, across - across // 2, down // 2, down - down // 2)
    one, two = (
        functional.pad(torch.from_numpy(f.astype(np.float32)).permute(2, 0, 1)[None], border, "replicate")
        for f in (first, second)
    )
    with torch.no_grad():
        flow = network(one, two)[0].numpy()
    lengths = np.sort(np.sqrt(flow[0] ** 2 + flow[1] ** 2).ravel())[::-1]
    return float(lengths[: int(lengths.size * share)].mean())


def test_pairs_in_batches_equal_pairs_alone(networks: dict[str, nn.Module], moving: Clip) -> None:
    """Odd sizes, pairs that jump and go back, as the static filter has them."""
    network = networks["raft-things"]
    assert isinstance(network, Raft)
    frames = moving(4, 130, 138)
    pairs = [(0, 1), (1, 2), (2, 3), (0, 3), (3, 0)]
    expected = [strength(network, frames[a], frames[b], 0.05) for a, b in pairs]
    assert len({round(value, 3) for value in expected}) == 5
    for batch in (1, 2, 5):
        found = pair_strengths(network, frames, pairs, share=0.05, batch=batch, device="cpu")
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_pair_is_judged_once_for_both_who_look_at_it(
    networks: dict[str, nn.Module], moving: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = networks["raft-things"]
    assert isinstance(network, Raft)
    frames, known = moving(3, 130, 138), dict[tuple[int, int], dict[float, float]]()
    options: dict[str, Any] = {"batch": 4, "device": "cpu", "known": known}
    pair_strengths(network, frames, [(0, 1), (1, 2)], share=0.02, **options)
    run: list[int] = []
    flow = network.flow

    def counted(first: torch.Tensor, *rest: Any) -> torch.Tensor:
        run.append(len(first))
        return flow(first, *rest)

    monkeypatch.setattr(network, "flow", counted)
    found = pair_strengths(network, frames, [(1, 2), (0, 2), (0, 1), (0, 2)], share=0.05, **options)
    assert run == [1]  # (0, 2), once
    expected = [strength(network, frames[a], frames[b], 0.05) for a, b in ((1, 2), (0, 2), (0, 1), (0, 2))]
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("fps", "kept"), [(8.0, 5), (24.0, 2)])
def test_dynamic_degree_equals_the_vote_over_pairs(
    folder: Path, networks: dict[str, nn.Module], fps: float, kept: int, video: Callable[..., Video]
) -> None:
    network = networks["raft-things"]
    assert isinstance(network, Raft)
    clip = video(fps, height=128, width=128)
    frames = clip.frames[:: max(1, round(fps / 8))]
    assert len(frames) == kept
    strengths = [strength(network, a, b, 0.05) for a, b in itertools.pairwise(frames)]
    moving_ = sum(value > 6 * 128 / 256 for value in strengths)
    details = DynamicDegree(folder=folder).details(clip, SAMPLE)
    assert details["strengths"] == pytest.approx(strengths, rel=1e-5)
    assert (details["threshold"], details["moving"]) == (3.0, moving_)
    assert details["wanted"] == round(4 * kept / 16)
    assert DynamicDegree(folder=folder).score(clip, SAMPLE) == float(moving_ >= round(4 * kept / 16))


@pytest.mark.parametrize(("height", "width"), [(480, 832), (720, 1280)])
def test_threshold_and_votes_of_vbench_s_examples(
    folder: Path, monkeypatch: pytest.MonkeyPatch, height: int, width: int
) -> None:
    """Wan, 81 frames at 16 fps: 41 kept, 10 of 40 pairs over 11.25 or 16.9 pixels."""
    asked: list[Any] = []

    def known(network: Any, frames: Any, pairs: list[tuple[int, int]], **rest: Any) -> list[float]:
        asked.append(pairs)
        return [11.3] * 10 + [1.0] * 30

    monkeypatch.setattr("evalharness.native.flow.pair_strengths", known)
    clip = Video(np.broadcast_to(np.zeros(1, np.uint8), (81, height, width, 3)), 16.0)
    details = DynamicDegree(folder=folder).details(clip, SAMPLE)
    assert asked[0] == [(i, i + 2) for i in range(0, 80, 2)]
    assert details["wanted"] == 10
    assert details["threshold"] == pytest.approx(11.25 if height == 480 else 16.875)
    assert details["dynamic"] is (height == 480)
    assert (details["statistic"] > 1) is (height == 480)


def test_the_statistic_passes_one_with_the_vote() -> None:
    assert flow_statistic([5.0, 1.0, 3.0], 2.0, 2) == 1.5
    assert flow_statistic([5.0, 1.0, 3.0], 2.0, 3) == 0.5
    assert flow_statistic([5.0], 2.0, 0) is None


def test_the_static_rule_by_hand() -> None:
    assert is_static([0.5, 3.1, 0.2], [11.9, 0.0], threshold=3.0, allowed=2)
    assert not is_static([3.1, 3.1, 3.1], [0.0, 0.0], threshold=3.0, allowed=2)
    assert not is_static([0.5, 0.5, 0.5], [0.0, 12.1], threshold=3.0, allowed=2)
    assert not is_static([0.5], [0.1, 0.0], threshold=3.0, allowed=0)  # short clips allow no wrap at all


def test_the_static_filter_looks_at_all_pairs_and_both_wraps(
    folder: Path, networks: dict[str, nn.Module], video: Callable[..., Video]
) -> None:
    network = networks["raft-things"]
    assert isinstance(network, Raft)
    clip = video(frames=3, height=128, width=128)
    f = clip.frames
    verdict = StaticFilter(folder=folder).judge(clip)
    expected = [
        strength(network, a, b, 0.02) for a, b in ((f[0], f[1]), (f[1], f[2]), (f[0], f[2]), (f[2], f[0]))
    ]
    assert verdict["strengths"] + verdict["wrap"] == pytest.approx(expected, rel=1e-5)
    assert (verdict["threshold"], verdict["allowed"]) == (1.5, 0)


@pytest.mark.parametrize(("flow", "still"), [(1.5, True), (1.6, False)])
def test_flickering_is_judged_on_still_videos_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, flow: float, still: bool
) -> None:
    """Three frames allow no pair above 3 pixels in 256, here 1.5 in 128."""
    monkeypatch.setattr("evalharness.native.flow.pair_strengths", lambda *_, **__: [flow, 0.0, 0.0, 0.0])
    frames = np.zeros((3, 128, 128, 3), np.uint8)
    frames[1:] = 51
    metric = TemporalFlickering(folder=folder)
    if still:  # half of two steps is a fifth of the range
        assert metric.score(Video(frames, 8.0), SAMPLE) == pytest.approx(0.9)
        return
    with pytest.raises(LeftOut, match="moves"):
        metric.score(Video(frames, 8.0), SAMPLE)


def test_pictures_too_small_for_raft_are_a_skip(folder: Path, video: Callable[..., Video]) -> None:
    with pytest.raises(Skip, match="128 pixels"):
        DynamicDegree(folder=folder).score(video(height=96, width=200), SAMPLE)


def test_pairs_at_a_time_follow_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """81 x 480 x 832: 60 x 104 places, 4 bytes for each two of them, and a third more for smaller levels."""

    def at_once(
        gigabytes: float, size: tuple[int, int] = (480, 832), batch: int = 99, itemsize: int = 4
    ) -> int:
        card = types.SimpleNamespace(total_memory=int(gigabytes * 2**30))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
        return flow._pairs_at_once(size, batch, itemsize, flow._correlation_bytes("cuda:0"))

    each = 6240 * 6240 * 4 * 4 / 3
    assert at_once(8) == at_once(16) == int(2**30 / each) == 5
    assert at_once(80) == int(5 * 2**30 / each) == 25
    assert at_once(1000) == at_once(1000, itemsize=2) == (2**31 - 1) // 6240**2 == 55  # numbers pass as int32
    assert at_once(80, batch=16) == 16
    assert at_once(8, size=(1080, 1920)) == 1
    assert flow._correlation_bytes("cpu") == 2**30
