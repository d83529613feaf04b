"""The clips that calibration draws, and the prompts that ask for them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from evalharness.api import Prompt, Sample
from evalharness.seeds import video_seed
from evalharness.tinyworld import spec
from evalharness.tinyworld.training.judge_data import opposite, wrong_captions

__all__ = ["Case", "contrary", "held_out_cases", "labels_of", "one_wrong", "reversed_relation"]

BASE_SEED = 31_000
SINGLES_IN_FIVE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A clip of the held-out split and the sample that stands for it.

    Attributes:
        clip: what a right video shows.
        sample: prompt with labels; its seed also draws the rendering's details.
    """

    clip: spec.Clip
    sample: Sample

    @property
    def moving(self) -> bool:
        return self.clip.motion != spec.MOTIONS[0]

    @property
    def directed(self) -> bool:
        """Whether the clip shows another motion when played backwards."""
        return self.clip.motion in ("moving left", "moving right", "moving up", "moving down")

    @property
    def pair(self) -> bool:
        return len(self.clip.things) > 1


def held_out_cases(count: int) -> list[Case]:
    """``count`` cases with different captions, three single things to two pairs.

    The first n of a longer list are the list of n.
    """
    rng = random.Random(BASE_SEED)
    cases: list[Case] = []
    texts: set[str] = set()
    while len(cases) < count:
        clip = spec.random_clip(rng, held_out=True, pair=len(cases) % 5 >= SINGLES_IN_FIVE)
        text = spec.caption(clip)
        if text not in texts:
            texts.add(text)
            name = f"c{len(cases):04d}"
            prompt = Prompt(id=name, text=text, dimensions=(), labels=labels_of(clip))
            seed = video_seed(BASE_SEED, name, 0)
            cases.append(Case(clip=clip, sample=Sample(prompt=prompt, index=0, seed=seed)))
    return cases


def labels_of(clip: spec.Clip) -> dict[str, Any]:
    """The labels that the metrics read, as the tinyworld protocol gives them."""
    return {
        "things": [{"color": thing.color, "shape": thing.shape} for thing in clip.things],
        "motion": clip.motion,
        "scene": clip.scene,
        "relation": clip.relation,
        "caption": spec.caption(clip),
    }


def relabelled(case: Case, clip: spec.Clip) -> Sample:
    """The case's sample, but asking for another clip."""
    prompt = replace(case.sample.prompt, text=spec.caption(clip), labels=labels_of(clip))
    return replace(case.sample, prompt=prompt)


def contrary(case: Case) -> Sample:
    """A prompt for as many things, of which nothing is true of the case's clip."""
    rng = random.Random(case.sample.seed)
    own, clip = case.clip, case.clip
    shapes = rng.sample(_others(spec.SHAPES, [t.shape for t in own.things]), len(own.things))
    colors = _others(spec.COLORS, [t.color for t in own.things])
    clip = replace(
        clip,
        things=tuple(spec.Thing(rng.choice(colors), shape) for shape in shapes),
        motion=rng.choice(_others(spec.MOTIONS, [own.motion])),
        scene=rng.choice(_others(spec.SCENES, [own.scene])),
        relation=None if own.relation is None else opposite(own.relation),
    )
    return relabelled(case, clip)


def reversed_relation(case: Case) -> Sample:
    """``above`` for ``below`` and so on; a single thing keeps its prompt."""
    if case.clip.relation is None:
        return case.sample
    return relabelled(case, replace(case.clip, relation=opposite(case.clip.relation)))


def one_wrong(case: Case) -> Sample:
    """The same labels, but a caption that is false by one attribute."""
    rng = random.Random(case.sample.seed)
    text = rng.choice(wrong_captions(case.clip, rng))
    labels = {**case.sample.prompt.labels, "caption": text}
    return replace(case.sample, prompt=replace(case.sample.prompt, text=text, labels=labels))


def _others(names: Sequence[str], own: Sequence[str]) -> list[str]:
    return [name for name in names if name not in own]
