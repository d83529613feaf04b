"""Which videos a protocol asks for, and which of them are expected to have a score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from evalharness.api import EvalProtocol, Prompt, Sample
from evalharness.seeds import video_seed

__all__ = ["samples_by_dimension", "samples_of", "scored_samples"]


def samples_by_dimension(protocol: EvalProtocol) -> dict[str, int]:
    """The protocol's optional member of that name, empty where it has none."""
    return dict(getattr(protocol, "samples_by_dimension", {}))


def samples_of(
    prompts: Iterable[Prompt], seed: int, per_prompt: int, by_dimension: Mapping[str, int]
) -> list[Sample]:
    """The videos of one cell, in the order of ``prompts``.

    Args:
        prompts: of the protocol, or some of them.
        seed: base seed of the cell.
        per_prompt: videos of each prompt.
        by_dimension: dimension -> videos of a prompt that counts for it, where that is more.
    """
    return [
        Sample(prompt=prompt, index=index, seed=video_seed(seed, prompt.id, index))
        for prompt in prompts
        for index in range(max([per_prompt, *(by_dimension.get(name, 0) for name in prompt.dimensions)]))
    ]


def scored_samples(
    samples: Iterable[Sample], left_out: Mapping[str, set[str]], per_prompt: int
) -> dict[str, list[Sample]]:
    """Dimension -> the videos that its score is made of: the first ``per_prompt`` of each prompt.

    Args:
        samples: of one cell, those of a prompt in the order of their numbers.
        left_out: dimension -> ids of the videos that its definition drops.
        per_prompt: videos of a prompt that count.
    """
    chosen: dict[str, list[Sample]] = {}
    for (_, dimension), group in _by_prompt(samples).items():
        kept = [sample for sample in group if sample.id not in left_out.get(dimension, ())]
        chosen.setdefault(dimension, []).extend(kept[:per_prompt])
    return chosen


def _by_prompt(samples: Iterable[Sample]) -> dict[tuple[str, str], Sequence[Sample]]:
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        for dimension in sample.prompt.dimensions:
            groups.setdefault((sample.prompt.id, dimension), []).append(sample)
    return dict(groups)
