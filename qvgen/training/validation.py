"""The loss on a batch that training never sees."""

from __future__ import annotations

import torch
from torch import nn

from qvgen.training.context import TrainContext, extras
from qvgen.training.recipe import TrainRecipe
from qvgen.training.step import training_loss


class Validation:
    """Training's own loss on one fixed batch of ``ctx.validation_batches``, model in eval mode.

    Raises:
        ValueError: the recipe validates but the context has no such batches.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None, recipe: TrainRecipe, ctx: TrainContext
    ) -> None:
        self._student, self._teacher, self._recipe, self._ctx = student, teacher, recipe, ctx
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
