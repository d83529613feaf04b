"""Do packed and fake-quantized execution give the same scores? Every differing video is accounted for.

    python benchmarks/packed_scores.py --output results/benchmarks/packed_scores.json

tinyworld on one CPU thread, every dimension of its protocol, 6 prompts of one seed, at W8A8 (rounded)
and W4A4 (the bundled ``qvgen``). Beside the packed run stands the fake-quantized one whose latents are
multiplied by 1 + 2^-23, a single rounding: what that moves is no error of either. For each video the
codes of the first step tell where the runs part.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import nn

    from evalharness.api import Sample
    from evalharness.session import Session

SETTINGS = ("w8a8", "w4a4")
FACTOR = 1 + 2**-23
NEAR = 2.0  # how many times farther than the moved run a packed one may be
Codes = dict[str, torch.Tensor]


def fake_model(session: Session, bits: str) -> nn.Module:
    """The fake-quantized transformer."""
    from evalharness.models.tinyworld import CHECKPOINTS
    from qvgen.api import convert_, quantize_
    from qvgen.checkpoint import load_quantized
    from qvgen.config import QuantConfig

    model = session.fresh_transformer()
    if bits == "w4a4":
        return load_quantized(model, CHECKPOINTS / "qvgen-w4a4", {}).eval()
    skip = session.loaded.skip_layers("std")
    return convert_(quantize_(model, QuantConfig(w_bits=8, a_bits=8), skip)).eval()


def moved(model: nn.Module, draw: int = 0) -> nn.Module:
    """A copy whose latents are rounded once more at every step.

    Args:
        model: fake-quantized.
        draw: 0: all are multiplied by 1 + 2^-23; else each by that or by 1 - 2^-23, as this seed draws.
    """

    def change(
        _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        latents = kwargs["hidden_states"]
        if not draw:
            return args, {**kwargs, "hidden_states": latents * FACTOR}
        drawn = torch.randint(0, 2, latents.shape, generator=torch.Generator().manual_seed(draw))
        factors = 1 + (FACTOR - 1) * (2 * drawn - 1)
        return args, {**kwargs, "hidden_states": latents * factors.to(latents)}

    model = copy.deepcopy(model)
    model.register_forward_pre_hook(change, with_kwargs=True)
    return model


def first_codes(model: nn.Module, packed: nn.Module, store: Codes) -> Callable[[], None]:
    """Keep each quantized layer's input codes of the first call; returns what ends that."""
    from qvgen.packed.activations import quantize_activations
    from qvgen.packed.convert import packed_layers
    from qvgen.packed.sources import Read

    def look(name: str, layer: Any, _: Any, args: tuple[Any, ...]) -> None:
        if name not in store:
            x = args[0]
            found = x.quantized if isinstance(x, Read) else quantize_activations(x, layer.activation_spec(x))
            store[name] = found.codes[:, : layer.in_features]  # kernels pad rows

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(partial(look, name, layer))
        for name, layer in packed_layers(packed)
    ]

    def end() -> None:
        for hook in hooks:
            hook.remove()

    return end


def make(session: Session, model: nn.Module, sample: Sample, path: Path) -> np.ndarray[Any, Any]:
    """One video, written and read again as the harness does."""
    from evalharness.video import encode_video, read_video

    session.loaded.transformer = model
    frames = session.loaded.generate([sample.prompt.text], [sample.seed])[0]
    path.write_bytes(encode_video(frames, session.model.settings.fps))
    return np.asarray(read_video(path).frames)


def scores(session: Session, sample: Sample, path: Path, metrics: Mapping[str, str]) -> dict[str, float]:
    """Of all dimensions that this prompt counts for."""
    from evalharness.api import Skip
    from evalharness.video import read_video

    video, found = read_video(path), {}
    for dimension in sample.prompt.dimensions:
        if dimension in metrics:
            try:
                found[dimension] = float(session.metric(metrics[dimension]).score(video, sample))
            except Skip:
                continue
    return found


def psnr(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float | None:
    """In dB; None for equal videos."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else None


def parted(fake: Codes, packed: Codes) -> dict[str, Any]:
    """Where the codes of the first step differ, in the order of the layers' calls.

    Raises:
        ValueError: no layer's codes were seen.
    """
    if not fake:
        raise ValueError("no codes of the fake-quantized model were seen; look with kernels off")
    apart = {name: (codes.int() - packed[name].int()).abs() for name, codes in fake.items()}
    other = {name: diff for name, diff in apart.items() if bool(diff.any())}
    total = sum(diff.numel() for diff in apart.values())
    return {
        "first_layer": next(iter(other), None),
        "codes_in_it": None if not other else int((next(iter(other.values())) > 0).sum()),
        "layers": f"{len(other)} of {len(apart)}",
        "share_of_codes": sum(int((diff > 0).sum()) for diff in other.values()) / total,
        "largest_difference": max((int(diff.max()) for diff in other.values()), default=0),
    }


LATER = "in a later step than the first"
"""Where codes part that are alike in the first step."""


def explained(
    packed_db: float | None, moved_db: float | None, codes: Mapping[str, Any], elsewhere: str = LATER
) -> str:
    """Why a packed video differs from the fake-quantized one; ``elsewhere`` if no layer is known for it."""
    if packed_db is None:
        return "equal"
    if moved_db is None:
        return "UNEXPLAINED: one rounding moves nothing here"
    if packed_db < moved_db - 20 * math.log10(NEAR):
        return f"UNEXPLAINED: {moved_db - packed_db:.1f} dB farther than one rounding of the latents"
    where = codes["first_layer"]
    return (
        "sums in another order move values over borders of codes, as one rounding of the latents does; "
        + (f"first in {where}" if where else elsewhere)
    )


def compare(session: Session, bits: str, samples: Sequence[Sample], folder: Path) -> dict[str, Any]:
    """Videos and scores of both executions, and of the moved one."""
    from qvgen.packed.convert import pack_

    fake = fake_model(session, bits)
    packed = pack_(copy.deepcopy(fake))
    models = {"fake": fake, "packed": packed, "moved": moved(fake)}
    metrics = session.registry.get("protocols", session.spec.protocol)().metrics
    videos, differences = {}, []
    for sample in samples:
        frames, found = {}, {}
        codes: dict[str, Codes] = {"fake": {}, "packed": {}}
        for name, model in models.items():
            path = folder / f"{name}.mp4"
            end = first_codes(model, packed, codes[name]) if name in codes else None
            frames[name] = make(session, model, sample, path)
            if end is not None:
                end()
            found[name] = scores(session, sample, path, metrics)
        decibels = {name: psnr(frames["fake"], frames[name]) for name in ("packed", "moved")}
        where = parted(codes["fake"], codes["packed"])
        videos[sample.id] = {
            "psnr_db": decibels,
            "first_step": where,
            "explanation": explained(decibels["packed"], decibels["moved"], where),
            "scores": found,
        }
        differences.append({
            name: {d: found[name][d] - value for d, value in found["fake"].items()} for name in decibels
        })  # fmt: skip
    return {"videos": videos, "dimensions": by_dimension(differences)}


def by_dimension(differences: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Mean difference of the scores from the fake-quantized ones, and the mean of its size."""
    found: dict[str, dict[str, float]] = {}
    for name in ("packed", "moved"):
        names = sorted({dimension for each in differences for dimension in each[name]})
        for dimension in names:
            values = [each[name][dimension] for each in differences if dimension in each[name]]
            entry = found.setdefault(dimension, {"videos": len(values)})
            entry[f"{name}_mean"] = statistics.fmean(values)
            entry[f"{name}_mean_size"] = statistics.fmean(map(abs, values))
    return found


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """One line of a setting."""
    videos, dimensions = found["videos"].values(), found["dimensions"].values()
    return {
        "videos": len(found["videos"]),
        "equal": sum(video["explanation"] == "equal" for video in videos),
        "unexplained": sum(video["explanation"].startswith("UNEXPLAINED") for video in videos),
        "mean_difference": statistics.fmean(d["packed_mean"] for d in dimensions),
        "mean_size_packed": statistics.fmean(d["packed_mean_size"] for d in dimensions),
        "mean_size_moved": statistics.fmean(d["moved_mean_size"] for d in dimensions),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Compare all settings; 0 if every difference is explained. Results are written after each."""
    from benchmarks.measuring import surroundings, write_json
    from evalharness.executor import WorkerSpec
    from evalharness.sampling import samples_of
    from evalharness.session import Session
    from evalharness.subset import spread_prompts

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    given = parser.parse_args(argv)
    session = Session(WorkerSpec(model="tinyworld", protocol="tinyworld", device="cpu", skip_layers="std"))
    prompts = tuple(session.prompts.values())
    metrics = session.registry.get("protocols", session.spec.protocol)().metrics
    chosen = spread_prompts(prompts, metrics, given.prompts)
    samples = samples_of(chosen, given.seed, 1, {})
    found: dict[str, Any] = {}
    facts = {**surroundings(torch.device("cpu")), "cpu_capability": torch.backends.cpu.get_cpu_capability()}
    with tempfile.TemporaryDirectory() as folder:
        for bits in given.settings:
            found[bits] = compare(session, bits, samples, Path(folder))
            totals = {key: summary(value) for key, value in found.items()}
            write_json(given.output, {"summary": totals, **facts, "seed": given.seed, "settings": found})
            print(f"{bits}: {totals[bits]}", flush=True)
            for name, video in found[bits]["videos"].items():
                print(f"  {name}: {video['psnr_db']['packed']} dB: {video['explanation']}", flush=True)
    return 1 if any(entry["unexplained"] for entry in totals.values()) else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
