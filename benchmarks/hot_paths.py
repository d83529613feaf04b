"""The hot paths as plain calls: each entry sets itself up once and returns what is to be timed.

    python -m pytest benchmarks/test_hot_paths.py --benchmark-only

times them all; ``benchmarks.against`` times them on two checkouts in turns. Sizes are chosen so that
one call takes
one to some tens of milliseconds on one thread. Only long-standing entry points of the packages are used
here, since
the same file times older checkouts too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

__all__ = ["HOT_PATHS"]

Action = Callable[[], object]


def _seeded(*shape: int) -> Any:
    import torch

    torch.set_num_threads(1)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def weight_quantizer() -> Action:
    """Fake quantization of a weight, per output channel, forward and backward."""
    from qvgen.config import QuantConfig
    from qvgen.quantizers import WeightQuantizer

    weight = _seeded(512, 1024).requires_grad_()
    quantizer = WeightQuantizer(weight.detach(), QuantConfig(w_bits=4, a_bits=4))

    def call() -> object:
        weight.grad = None
        quantizer(weight).square().sum().backward()
        return weight.grad

    return call


def activation_quantizer() -> Action:
    """Dynamic fake quantization of tokens, forward."""
    import torch

    from qvgen.config import QuantConfig
    from qvgen.quantizers import ActivationQuantizer, ClipContext

    x, config = _seeded(2048, 512), QuantConfig(w_bits=4, a_bits=4)
    quantizer = ActivationQuantizer(config, ClipContext(config.clip_buckets), torch.device("cpu"))

    def call() -> object:
        with torch.inference_mode():
            return quantizer(x)

    return call


def range_search() -> Action:
    """The grid search for a weight's initial range."""
    from qvgen.config import QuantConfig
    from qvgen.quantizers import initial_scale

    weight, config = _seeded(128, 512), QuantConfig(w_bits=4, a_bits=4)
    return lambda: initial_scale(weight, config)


def packing() -> Action:
    """Packing codes of three bits and back."""
    import torch

    from qvgen.packed.bits import pack, unpack

    codes = torch.randint(0, 8, (512, 1024), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return lambda: unpack(pack(codes, 3), 3, (512, 1024))


def _packed(backend: str) -> Action:
    import torch

    from evalharness.models.tinyworld import CHECKPOINTS, TinyWorld
    from qvgen.checkpoint import load_quantized
    from qvgen.packed.convert import pack_

    loaded = TinyWorld().load("cpu")
    torch.set_num_threads(1)
    fake = load_quantized(copy.deepcopy(loaded.transformer), CHECKPOINTS / "qvgen-w3a3", {})
    model = (pack_(fake, backend) if backend else fake).eval()
    inputs = loaded.step_inputs()

    def call() -> object:
        with torch.inference_mode():
            return model(**inputs)

    return call


def packed_step() -> Action:
    """One step of tinyworld with packed three-bit weights on a CPU."""
    return _packed("cpu")


def fake_step() -> Action:
    """The same step with fake quantization."""
    return _packed("")


def frame_store() -> Action:
    """Decoding a video of 17 frames of 192 x 192."""
    import numpy as np

    from evalharness.frames import decode
    from evalharness.video import encode_video

    grid = np.indices((17, 192, 192)).sum(axis=0).astype(np.uint8)
    data = encode_video(np.repeat(grid[..., None], 3, axis=3), 8)
    return lambda: decode(data, "clip").frames


def scoring() -> Action:
    """Two judges of tinyworld on one video, frames fresh each time."""
    import numpy as np

    from evalharness.api import Sample, Video
    from evalharness.metrics.imaging_quality import ImagingQuality
    from evalharness.metrics.subject_consistency import SubjectConsistency
    from evalharness.protocols.tinyworld import TinyWorldProtocol

    frames = np.random.default_rng(0).integers(0, 255, (17, 48, 48, 3), dtype=np.uint8)
    sample = Sample(prompt=TinyWorldProtocol().prompts()[0], index=0, seed=0)
    metrics = (ImagingQuality(), SubjectConsistency())

    def call() -> object:
        video = Video(frames, 8.0)
        return [metric.score(video, sample) for metric in metrics]

    return call


def _records() -> list[Any]:
    import random

    from evalharness.results import CellRecord, ScoreRow

    rng = random.Random(0)  # noqa: S311 - repeatable, no secrets
    names = ("scene", "color", "imaging_quality")
    cells = []
    for method, bits in (("bf16", 16), ("rtn", 4), ("lsq", 4), ("rtn", 3), ("lsq", 3)):
        rows = {name: [ScoreRow(f"{i:04d}", 0, rng.random()) for i in range(200)] for name in names}
        cells.append(
            CellRecord(
                cell_id=f"{method}-{bits}", model="m", protocol="p", method=method, w_bits=bits, a_bits=bits,
                seed=0, source="reference" if method == "bf16" else "computed", execution="fake",
                n_expected=dict.fromkeys(names, 200), scores=rows, n_videos_expected=200, n_videos_ok=200,
                n_failed=0,
            )
        )  # fmt: skip
    return cells


def _results() -> Any:
    from evalharness.results import build_results

    return build_results(
        _records(), protocol="p", dimensions=["scene", "color", "imaging_quality"], percent=True, label="l",
        manifest={}, prompts={f"{i:04d}": f"prompt {i}" for i in range(200)},
    )  # fmt: skip


def aggregation() -> Action:
    """Five cells of 200 prompts and three dimensions, with intervals and differences."""
    return _results


def tables() -> Action:
    """The Markdown leaderboard of the same, ranking included."""
    from evalharness.report.tables import markdown

    results = _results()
    return lambda: markdown(results)


def page() -> Action:
    """The page of the same, plots included."""
    from pathlib import Path

    from evalharness.report.html import render

    results = _results()
    return lambda: render(results, Path("nowhere"))


HOT_PATHS: dict[str, Callable[[], Action]] = {
    each.__name__: each
    for each in (
        weight_quantizer, activation_quantizer, range_search, packing, packed_step, fake_step, frame_store,
        scoring, aggregation, tables, page,
    )
}  # fmt: skip
