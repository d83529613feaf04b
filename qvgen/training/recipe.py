"""The numbers of a training run: one frozen dataclass, shared by every trained method. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from qvgen.config import check_choice, check_float, check_int

Loss = Literal["distill", "task", "distill+task"]
Precision = Literal["fp32", "bf16"]
Compile = Literal["off", "default", "reduce-overhead", "graph"]
CheckpointingKeeps = Literal["nothing", "attention"]
TeacherPlace = Literal["whole", "sharded", "host"]
Offload = Literal["off", "moments"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRecipe:
    """How a quantized model is trained. The defaults suit a small model and a few CPU minutes.

    Attributes:
        steps: optimiser steps.
        batch_size: samples of one pass through the model.
        accumulate: passes whose gradients are averaged into one step, which so sees
            ``batch_size * accumulate`` samples.
        lr_weights: peak learning rate of weights, biases, norms and all else unquantized.
        lr_scales: of weight scales and zero points (a relative step for log-scales).
        lr_phi: of Phi's L and R.
        lr_clips: of the activation clips' logits, and of static activation steps and offsets.
        betas: AdamW's decay rates; the official code's are 0.9 and 0.95.
        eps: AdamW's epsilon.
        weight_decay: AdamW's decay of weights and Phi. Scales, zero points and clips have none:
            it would pull a logarithm or logit to 0, which means nothing.
        warmup: share of the steps in which the learning rate rises linearly.
        grad_clip: largest global gradient norm.
        skip_bad_steps: steps in a row that may be left out because their loss or gradient is not finite,
            as one bad clip makes it; one more ends the training. 0: the first one does. Otherwise each
            step waits for the device.
        loss: ``distill``: mean squared error to the full-precision teacher's output; ``task``: to
            the training target of the model itself; ``distill+task``: the first plus
            ``task_weight`` times the second.
        task_weight: see ``loss``.
        precision: ``fp32``, or ``bf16`` for autocast over float32 master weights.
        gradient_checkpointing: keep less for the backward pass and compute it again; the model
            must have ``enable_gradient_checkpointing``.
        checkpointing_keeps: what of a checkpointed block is kept all the same: ``nothing``, or what
            its ``attention`` gave, which so is not computed again.
        teacher: where it lies: ``whole`` on each device, ``sharded`` over the processes, or on the
            ``host``, from where its blocks come to the device one by one.
        offload: ``moments``: AdamW's moments of the weights rest on the host; 8 bytes a number less on
            the devices.
        offload_share: of the moments that ``offload`` means, how much rests on the host; the others stay.
        log_every: steps between log lines.
        log_layers_every: log lines between those that hold, for every layer, the gradient's norm
            and Phi's singular values; 0 for none.
        validate_every: steps between losses on a fixed batch of ``ctx.validation_batches``; 0 for
            none.
        sample_every: steps between videos of a few prompts, where the context has
            ``sample_videos``; 0 for none.
        save_every: steps between saved training states, where ``ctx.state_folder`` says; 0 for none.
        save_every_s: seconds between them; 0 for none. The earlier of both counts.
        save_async: write a state in the background, from a copy in the memory of the host, while the
            training goes on. What is killed meanwhile has the state before it.
        compile: mode of ``torch.compile`` for student and teacher; or ``graph``: the uncompiled step
            recorded as one CUDA graph, which suits small models on large GPUs; or ``off``.
    """

    steps: int = 60
    batch_size: int = 8
    accumulate: int = 1
    lr_weights: float = 1e-4
    lr_scales: float = 5e-4
    lr_phi: float = 1e-4
    lr_clips: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 1e-4
    warmup: float = 0.1
    grad_clip: float = 1.0
    skip_bad_steps: int = 0
    loss: Loss = "distill"
    task_weight: float = 1.0
    precision: Precision = "fp32"
    gradient_checkpointing: bool = False
    checkpointing_keeps: CheckpointingKeeps = "nothing"
    teacher: TeacherPlace = "whole"
    offload: Offload = "off"
    offload_share: float = 1.0
    log_every: int = 10
    log_layers_every: int = 0
    validate_every: int = 0
    sample_every: int = 0
    save_every: int = 0
    save_every_s: float = 60.0
    save_async: bool = False
    compile: Compile = "off"

    def __post_init__(self) -> None:
        check_int("steps", self.steps, 1, 10**9)
        check_int("batch_size", self.batch_size, 1, 10**6)
        check_int("accumulate", self.accumulate, 1, 10**6)
        check_int("log_every", self.log_every, 1, 10**9)
        counts = ("log_layers_every", "validate_every", "sample_every", "save_every", "skip_bad_steps")
        for name in counts:
            check_int(name, getattr(self, name), 0, 10**9)
        check_float("save_every_s", self.save_every_s, 0.0, math.inf, open_high=True)
        check_float("task_weight", self.task_weight, 0.0, math.inf, open_high=True)
        check_choice("gradient_checkpointing", self.gradient_checkpointing, (True, False))
        check_choice("checkpointing_keeps", self.checkpointing_keeps, ("nothing", "attention"))
        check_choice("teacher", self.teacher, ("whole", "sharded", "host"))
        check_choice("offload", self.offload, ("off", "moments"))
        check_float("offload_share", self.offload_share, 0.0, 1.0, open_low=True)
        check_choice("save_async", self.save_async, (True, False))
        for name in ("lr_weights", "lr_scales", "lr_phi", "lr_clips", "weight_decay"):
            check_float(name, getattr(self, name), 0.0, 1.0)
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise ValueError(f"betas is {self.betas!r}; expected two numbers, e.g. [0.9, 0.95]")
        for beta in self.betas:
            check_float("betas", beta, 0.0, 1.0, open_high=True)
        check_float("eps", self.eps, 0.0, 1.0, open_low=True)
        check_float("warmup", self.warmup, 0.0, 1.0, open_high=True)
        check_float("grad_clip", self.grad_clip, 0.0, math.inf, open_low=True)
        check_choice("loss", self.loss, ("distill", "task", "distill+task"))
        check_choice("precision", self.precision, ("fp32", "bf16"))
        check_choice("compile", self.compile, ("off", "default", "reduce-overhead", "graph"))
        if self.compile == "graph" and self.gradient_checkpointing:
            raise ValueError("gradient_checkpointing does not go with compile: graph; use compile: default")
        if self.checkpointing_keeps != "nothing" and not self.gradient_checkpointing:
            raise ValueError("checkpointing_keeps says nothing without gradient_checkpointing: true")
        if self.compile != "off" and self.teacher == "host":
            raise ValueError("teacher: host does not go with compile, which fixes addresses; use sharded")
        for name, usual in (("offload", "off"), ("skip_bad_steps", 0)):
            if self.compile == "graph" and getattr(self, name) != usual:
                raise ValueError(f"{name} does not go with compile: graph; use compile: default")

    def lr_factor(self, step: int) -> float:
        """Factor of every learning rate at ``step``: linear warm-up, then cosine to zero."""
        rise = round(self.warmup * self.steps)
        if step < rise:
            return (step + 1) / rise
        return (1 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise))) / 2
