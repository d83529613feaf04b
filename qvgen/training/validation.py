"""What a training shows on the way: the loss on a batch that it never sees, and videos."""

from __future__ import annotations

import torch
from torch import nn

from qvgen.training.context import TrainContext, extras
from qvgen.training.recipe import TrainRecipe
from qvgen.training.step import training_loss


class Validation:
    """Training's own loss on one fixed batch of ``ctx.validation_batches``, model in eval mode.

    Raises:
        ValueError: the recipe validates or samples but the context cannot.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None, recipe: TrainRecipe, ctx: TrainContext
    ) -> None:
        self._student, self._teacher, self._recipe, self._ctx = student, teacher, recipe, ctx
        self._sample = extras(ctx).sample_videos
        if recipe.sample_every and self._sample is None:
            raise ValueError("sample_every is set, but the context has no sample_videos; set it to 0")
        if recipe.validate_every:
            draw = extras(ctx).validation_batches
            if draw is None:
                raise ValueError(
                    "validate_every is set, but the context has no validation_batches; set it to 0"
                )
            self._batch = next(draw(recipe.batch_size))

    def is_due(self, step: int) -> bool:
        """Whether to validate after the step of this number."""
        every = self._recipe.validate_every
        return every > 0 and (step + 1) % every == 0

    @torch.no_grad()
    def loss(self) -> float:
        """Now; waits for the device."""
        self._student.eval()
        loss = training_loss(self._student, self._teacher, self._batch, self._recipe, self._ctx)
        self._student.train()
        return float(loss)

    @torch.no_grad()
    def sample_if_due(self, step: int) -> None:
        """Videos after the step of this number, if ``sample_every`` says so; by every process alike."""
        every = self._recipe.sample_every
        if every and (step + 1) % every == 0:
            assert self._sample is not None
            self._student.eval()
            self._sample(self._student, step + 1)
            self._student.train()
