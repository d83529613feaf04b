"""Which videos a protocol asks for, and which of them are expected to have a score."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence

from evalharness.api import EvalProtocol, Prompt, Sample
from evalharness.seeds import video_seed

__all__ = ["Videos", "each_sample", "samples_by_dimension", "samples_of", "videos_of"]

_DIGITS = 18  # of a video's number; Python refuses to convert thousands


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
    return list(each_sample(prompts, seed, per_prompt, by_dimension))


def each_sample(
    prompts: Iterable[Prompt], seed: int, per_prompt: int, by_dimension: Mapping[str, int]
) -> Iterator[Sample]:
    """As ``samples_of``, one by one."""
    for prompt in prompts:
        for index in range(videos_of(prompt, per_prompt, by_dimension)):
            yield Sample(prompt=prompt, index=index, seed=video_seed(seed, prompt.id, index))


def videos_of(prompt: Prompt, per_prompt: int, by_dimension: Mapping[str, int]) -> int:
    """How many videos a prompt has."""
    return max([per_prompt, *(by_dimension.get(name, 0) for name in prompt.dimensions)])


class Videos:
    """The videos that each cell of a plan should have; a place is a number in their order.

    Args:
        prompts: of the protocol, or some of them.
        per_prompt, by_dimension: as ``samples_of`` takes them.
    """

    def __init__(self, prompts: Sequence[Prompt], per_prompt: int, by_dimension: Mapping[str, int]) -> None:
        self.prompts = prompts
        self._counts = (per_prompt, by_dimension)
        self.starts = array("q", [0])
        self._numbers: dict[str, int] = {}
        for number, prompt in enumerate(prompts):
            self.starts.append(self.starts[-1] + videos_of(prompt, per_prompt, by_dimension))
            self._numbers[prompt.id] = number

    def __len__(self) -> int:
        return self.starts[-1]

    def of(self, seed: int) -> Iterator[Sample]:
        """A cell's, in the order of their places."""
        return each_sample(self.prompts, seed, *self._counts)

    def find(self, sample_id: str) -> tuple[int, int]:
        """Number of the prompt, and place; (-1, -1) for a video that is not asked for."""
        name, _, index = sample_id.rpartition("-")
        number = self._numbers.get(name, -1)
        is_number = index.isascii() and index.isdigit() and len(index) <= _DIGITS
        if number < 0 or not is_number or (index[0] == "0" and index != "0"):
            return -1, -1
        place = self.starts[number] + int(index)
        return (number, place) if place < self.starts[number + 1] else (-1, -1)
