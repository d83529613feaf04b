"""Training batches along tinyworld's own sampling, against the pipeline that samples."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from evalharness.models.tinyworld import SETTINGS, LoadedTinyWorld, TinyWorld
from evalharness.tinyworld.components import TEXT_LENGTH


@pytest.fixture(scope="module")
def loaded() -> LoadedTinyWorld:
    return TinyWorld().load("cpu")


def test_batches_are_the_states_of_the_pipelines_sampler(loaded: LoadedTinyWorld) -> None:
    drawn = list(islice(loaded.trajectories(loaded.transformer, batch_size=3, seed=5), SETTINGS.steps + 1))
    first = drawn[0].inputs
    assert first["hidden_states"].shape[0] == 2  # one video, with and without caption
    states: list[Tensor] = []

    def keep(pipeline: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        states.append(tensors["latents"].clone())
        return {}

    with torch.no_grad():
        loaded.pipeline(
            prompt_embeds=first["encoder_hidden_states"][1:],
            negative_prompt_embeds=first["encoder_hidden_states"][:1],
            latents=first["hidden_states"][:1].clone(),
            height=SETTINGS.height,
            width=SETTINGS.width,
            num_frames=SETTINGS.frames,
            num_inference_steps=SETTINGS.steps,
            guidance_scale=SETTINGS.guidance,
            max_sequence_length=TEXT_LENGTH,
            output_type="latent",
            callback_on_step_end=keep,
        )
    for batch, state in zip(drawn[1:], states[:-1], strict=False):
        torch.testing.assert_close(batch.inputs["hidden_states"][:1], state, atol=1e-4, rtol=1e-4)
    times = [int(batch.inputs["timestep"][0]) for batch in drawn]
    assert times[:-1] == sorted(set(times), reverse=True) and times[-1] == times[0]
    assert not torch.equal(drawn[-1].inputs["hidden_states"], first["hidden_states"])  # the next video


def test_the_target_is_the_models_prediction_and_draws_repeat(loaded: LoadedTinyWorld) -> None:
    one, again = (next(loaded.trajectories(loaded.transformer, batch_size=4, seed=5)) for _ in range(2))
    assert torch.equal(one.inputs["hidden_states"], again.inputs["hidden_states"])
    assert one.target.shape == one.inputs["hidden_states"].shape == (4, *one.target.shape[1:])
    with torch.no_grad():
        assert torch.equal(loaded.predict(loaded.transformer, one), one.target)
