"""Training steps of a full-size model with random weights, on as many GPUs as ``torchrun`` starts.

    torchrun --nproc-per-node 2 -m benchmarks.train_scale --model wan2.1-14b --offload moments \
        --teacher sharded --measure 3 --output out

The whole way is run and measured: quantizing block by block, sharding, steps, a saved state if asked
for, and the finished model; seconds and peak memory of each, beside what the preflight predicts. Every
process makes the same random bfloat16 weights on its GPU, from where the training takes them. After each
phase ``train_scale.json`` is written with what there is. ``--measure N`` ends the training after N of its
steps, ``--limit-s`` where another one has no time left; then nothing is converted. With ``--against
FOLDER``, of the same training on fewer GPUs, ``scaling`` is recorded.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from benchmarks.measuring import ratio, surroundings
from benchmarks.qat_training import Batch
from evalharness.machine.costs import state_bytes, training_memory
from evalharness.machine.pinned import training_host_memory
from evalharness.machine.preflight import Training, need_of
from evalharness.memory import host_memory_left
from evalharness.modeloptions import ModelOptions
from evalharness.registry import Registry
from evalharness.store import atomic_write_text
from qvgen.config import QuantConfig, QVGenConfig
from qvgen.training.parallel import agreed, rank, world_size
from qvgen.training.recipe import TrainRecipe
from qvgen.training.run import quantize_and_train_

TINY: dict[str, dict[str, Any]] = {
    "WanTransformer3DModel": {
        "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
        "text_dim": 12, "freq_dim": 8, "ffn_dim": 36, "num_layers": 2,
    },
    "CogVideoXTransformer3DModel": {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
        "num_layers": 2, "time_embed_dim": 16, "text_embed_dim": 12, "max_text_seq_length": 4,
        "sample_width": 4, "sample_height": 4, "sample_frames": 5,
    },
}  # fmt: skip
_PROCESSES_GB = 8.0  # of the host, for the processes themselves
_UNTIMED = 1  # steps that load kernels and allocate


class EnoughError(Exception):
    """As many steps as were asked for have been measured."""


class Measured:
    """A ``TrainContext`` that measures: phases by name, seconds and peak bytes."""

    seed = 0
    skip_layers = ()

    def __init__(
        self, options: argparse.Namespace, device: torch.device, kind: str, config: Mapping[str, Any]
    ) -> None:
        self.device, self.kind, self.config, self.options = device, kind, config, options
        self.state_folder = options.state
        self.phases: list[dict[str, Any]] = []
        self.records: list[dict[str, Any]] = []
        self.facts: Mapping[str, Any] = {}
        self._begun = time.perf_counter()

    def phase(self, name: str) -> None:
        """What ran since the last call was ``name``."""
        found: dict[str, Any] = {"name": name}
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            found["peak_gb"] = round(torch.cuda.max_memory_allocated(self.device) / 1e9, 2)
            found["reserved_gb"] = round(torch.cuda.max_memory_reserved(self.device) / 1e9, 2)
            torch.cuda.reset_peak_memory_stats(self.device)
        found["seconds"] = round(time.perf_counter() - self._begun, 2)
        self.phases.append(found)
        self._begun = time.perf_counter()
        if rank() == 0:
            print(found, flush=True)
            self.save(self.found())

    def found(self) -> dict[str, Any]:
        """What there is so far."""
        losses = [record["loss"] for record in self.records]
        return {**self.facts, **self.steps(), "phases": self.phases, "losses": losses}

    def steps(self) -> dict[str, Any]:
        """Of the steps after the first: seconds, and peak memory over what was predicted."""
        steps = [phase for phase in self.phases if phase["name"].startswith("step ")][_UNTIMED:]
        if not steps:
            return {}
        found: dict[str, Any] = {"step_s": statistics.median(step["seconds"] for step in steps)}
        if "peak_gb" in steps[0]:
            most = max(step["peak_gb"] for step in steps)
            found |= {
                "step_peak_gb": most,
                "peak_to_predicted": ratio(most, self.facts["predicted_step_peak_gb"]),
            }
        if self.options.against is not None:
            found["scaling"] = scaling(self.options.against, self.facts, found["step_s"])
        return found

    def save(self, found: Mapping[str, Any]) -> None:
        """Write what there is."""
        if self.options.output is not None:
            self.options.output.mkdir(parents=True, exist_ok=True)
            text = json.dumps(found, indent=1) + "\n"
            atomic_write_text(self.options.output / "train_scale.json", text)

    def teacher(self) -> nn.Module:
        self.phase("student quantized and sharded")
        return transformer(self.kind, self.config, self.device, seed=0).eval().requires_grad_(False)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        o, config = self.options, self.config
        frames, height, width = (o.frames - 1) // 4 + 1, o.height // 8, o.width // 8
        channels, is_wan = config["in_channels"], self.kind.startswith("Wan")
        size = (channels, frames, height, width) if is_wan else (frames, channels, height, width)
        text_width = config["text_dim" if is_wan else "text_embed_dim"]
        generator = torch.Generator(self.device).manual_seed(1)
        draw: dict[str, Any] = {"device": self.device, "dtype": torch.bfloat16, "generator": generator}
        while True:
            latents = torch.randn(batch_size, *size, **draw)
            text = torch.randn(batch_size, o.text, text_width, **draw)
            timestep = torch.randint(0, 1000, (batch_size,), device=self.device, generator=generator)
            yield Batch(
                {"hidden_states": latents, "timestep": timestep, "encoder_hidden_states": text}, latents
            )

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        out: Tensor = model(**batch.inputs, return_dict=False)[0]
        return out

    def log(self, record: Mapping[str, float | int | str]) -> None:
        self.records.append(dict(record))

    def track(self, steps: range, what: str) -> Iterator[int]:
        self.phase("teacher in place")
        longest = 0.0
        for step in steps:
            begun = time.perf_counter()
            yield step
            self.phase(f"step {step}")
            longest = max(longest, time.perf_counter() - begun)
            late = time.monotonic() - self.options.begun + longest > self.options.limit_s
            if step + 1 == self.options.measure or agreed(late, self.device):
                raise EnoughError


def scaling(folder: Path, facts: Mapping[str, Any], step_s: float) -> dict[str, Any]:
    """How much faster this training's step is than the one recorded in ``folder``, for each GPU added.

    Raises:
        ValueError: there is no record, or that was another training.
    """
    try:
        base = json.loads((folder / "train_scale.json").read_text())
    except OSError as error:
        raise ValueError(
            f"--against {folder}: no train_scale.json ({error.strerror}); give --output's"
        ) from None
    for name in ("model", "clip", "rank", "device"):
        if base[name] != facts[name]:
            raise ValueError(f"--against {folder}: {name} {base[name]}, here {facts[name]}")
    recipe = json.loads(json.dumps(facts["recipe"]))
    differ = [name for name in recipe if base["recipe"][name] != recipe[name] and name != "teacher"]
    if differ:
        raise ValueError(f"--against {folder}: another recipe: {', '.join(differ)}")
    if "step_s" not in base:
        raise ValueError(f"--against {folder}: it has no step after the first")
    more = facts["gpus"] / base["gpus"]
    faster = base["step_s"] / step_s
    return {
        "gpus": base["gpus"],
        "step_s": base["step_s"],
        "faster": faster,
        "efficiency": ratio(faster, more),
    }


def transformer(kind: str, config: Mapping[str, Any], device: torch.device, seed: int) -> nn.Module:
    """Random bfloat16 weights, the same in each process."""
    import diffusers

    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model: nn.Module = getattr(diffusers, kind)(**config)
    finally:
        torch.set_default_dtype(before)
    return model


def refuse_small_host(need_gb: float, left_gb: float | None) -> None:
    """What the host has no room for would be ended by the kernel, and whatever else runs there with it.

    Raises:
        ValueError: says by how much.
    """
    if left_gb is not None and need_gb + _PROCESSES_GB > left_gb:
        raise ValueError(
            f"{need_gb:.0f} GB would lie on the host, of which {left_gb:.0f} are free; take a smaller "
            "--offload-share, another --teacher, or more GPUs"
        )


def measure(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """One training; its phases and predictions."""
    built = Registry().get("models", options.model)(ModelOptions())
    spec = built.spec
    config = TINY[spec.transformer] if options.tiny else spec.shape.config
    options.width = options.width or (720 if spec.shape.joint_text else 832)
    options.text = options.text or spec.shape.text_tokens
    recipe = TrainRecipe(
        steps=options.steps, batch_size=options.batch_size, accumulate=options.passes * world_size(),
        lr_weights=3e-5, precision="bf16", gradient_checkpointing=True, checkpointing_keeps=options.keeps,
        teacher=options.teacher, offload=options.offload, save_async=options.save_async,
        save_every=options.save_every, log_every=1, offload_share=options.offload_share,
    )  # fmt: skip
    quick = options.start == "quick"
    quant = QuantConfig(w_bits=4, a_bits=4, learn_clip=True, range_init="minmax" if quick else "search")
    qat: Any = quant
    if options.rank:
        qat = QVGenConfig(quant=quant, rank=options.rank, phi_init="random" if quick else "error")
    context = Measured(options, device, spec.transformer, config)
    settings = dataclasses.replace(
        built.settings, frames=options.frames, height=options.height, width=options.width
    )
    asked = Training.of(dataclasses.asdict(recipe), options.rank, world_size())
    predicted = training_memory(spec, settings, **asked.of_a_step())
    left, local = host_memory_left(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    on_host = training_host_memory(spec, **asked.on_the_host()) * local
    if options.state is not None and options.save_async:
        on_host += state_bytes(spec, options.rank)  # of the first process alone
    if not options.tiny:  # a tiny one is predicted as its whole model
        refuse_small_host(on_host / 1e9, None if left is None else left / 1e9)
    context.facts = {
        "model": options.model,
        "tiny": options.tiny,
        "gpus": world_size(),
        **surroundings(device),
        "clip": [options.frames, options.height, options.width],
        "start": options.start,
        "rank": options.rank,
        "recipe": dataclasses.asdict(recipe),
        "predicted_gb": {name: round(size / 1e9, 2) for name, size in predicted.items()},
        "predicted_step_peak_gb": round(sum(predicted.values()) / 1e9, 2),
        "predicted_host_gb": round(on_host / 1e9, 2),
        "host_left_gb": None if left is None else round(left / 1e9, 2),
        "preflight_gb": round(need_of(spec, settings, asked)[0] / 1e9, 2),
    }
    if rank() == 0:
        print(json.dumps(context.facts), flush=True)
    if options.against is not None:
        try:
            scaling(options.against, context.facts, 1.0)  # a mistake is told before the work
        except ValueError as error:
            sys.exit(f"error: {error}")
    try:
        model = transformer(spec.transformer, config, device, seed=0)
        context.phase("weights made")
        quantize_and_train_(model, qat, recipe, context)
        context.phase("converted")
    except EnoughError:
        pass
    except Exception as error:
        context.facts = {**context.facts, "error": f"{type(error).__name__}: {error}"}
        if rank() == 0:
            context.save(context.found())
        raise
    return context.found()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="wan2.1-14b", help="a Wan, or CogVideoX-2B")
    parser.add_argument(
        "--tiny", action="store_true", help="two small blocks and a small clip instead, to try the script"
    )
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--passes", type=int, default=1, help="of each process in a step")
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=0, help="default: 832, of CogVideoX 720")
    parser.add_argument("--text", type=int, default=0, help="tokens of a caption; default: the model's")
    parser.add_argument("--rank", type=int, default=32, help="of Phi; 0: kd-qat")
    parser.add_argument(  # torchrun would take --start for an option of its own
        "--begin", dest="start", choices=("quick", "full"), default="full",
        help="quick: no search, and a random Phi",
    )  # fmt: skip
    parser.add_argument("--keeps", choices=("nothing", "attention"), default="nothing")
    parser.add_argument("--teacher", choices=("whole", "sharded", "host"), default="sharded")
    parser.add_argument("--offload", choices=("off", "moments"), default="off")
    parser.add_argument("--offload-share", type=float, default=1.0, help="of the moments, on the host")
    parser.add_argument("--state", type=Path, default=None, help="folder of training states")
    parser.add_argument("--save-every", type=int, default=0)
    parser.add_argument("--save-async", action="store_true")
    parser.add_argument("--measure", type=int, default=0, help="end after so many steps; 0: after the last")
    parser.add_argument(
        "--limit-s", type=float, default=float("inf"), help="no step begins that ends after it"
    )
    parser.add_argument("--against", type=Path, default=None, help="folder of a record on fewer GPUs")
    parser.add_argument("--output", type=Path, default=None, help="folder for train_scale.json")
    options = parser.parse_args(argv)
    options.begun = time.monotonic()
    if options.tiny:
        options.frames, options.height, options.width, options.text = 5, 32, 32, 4
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    joint = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if joint:
        distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        found = measure(options, device)
        if rank() == 0:
            print(json.dumps(found, indent=1))
    finally:
        if joint:
            distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
