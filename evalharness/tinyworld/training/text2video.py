"""Train tinyworld's text encoder and transformer on the autoencoder's latents.

    torchrun --nproc-per-node 4 -m evalharness.tinyworld.training.text2video \
        --vae build/vae --out build/pipeline --minutes 6

Runs on one process as well (plain ``python -m``). Each process renders and encodes its own clips,
then trains v-prediction with 10 % caption dropout on the average of all processes' gradients.
``--init`` goes on from the pipeline folder of an earlier call, with fresh optimizer state.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline
from torch import Tensor, nn

from evalharness.tinyworld import components, spec, world
from evalharness.tinyworld.training.common import (
    Average,
    Budget,
    average_gradients,
    environment,
    learning_rate,
    rank,
    start_processes,
    write_json,
)

CAPTION_DROPOUT = 0.1
OBJECT_WEIGHT = 4.0
AND_FRACTION = 0.3  # pairs whose caption says "and" instead of naming the relation

log = logging.getLogger(__name__)


class Clips(NamedTuple):
    """Encoded training clips on the device.

    Attributes:
        latents: half [N, T, C, H, W], scaled.
        ids: long [N, L], token ids of the captions.
        weight: loss weight, half [N, T, 1, H, W], or a scalar one.
    """

    latents: Tensor
    ids: Tensor
    weight: Tensor


class NoisyBatch(NamedTuple):
    """``noisy`` and ``target`` [B, T, C, H, W], ``ids`` [B, L], ``timestep`` [B], ``weight`` as in Clips."""

    noisy: Tensor
    ids: Tensor
    timestep: Tensor
    target: Tensor
    weight: Tensor


class TextToVideo(nn.Module):
    """Text encoder and transformer as one module, so that both train together."""

    def __init__(self, text_encoder: nn.Module, transformer: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.transformer = transformer

    def forward(self, noisy: Tensor, ids: Tensor, timestep: Tensor) -> Tensor:
        text = self.text_encoder(ids)[0]
        output: Tensor = self.transformer(
            hidden_states=noisy, encoder_hidden_states=text, timestep=timestep, return_dict=False
        )[0]
        return output


@torch.no_grad()
def encode_clips(
    vae: AutoencoderKLCogVideoX,
    tokenizer: Any,
    count: int,
    generator: torch.Generator,
    device: torch.device,
    *,
    weigh: bool,
) -> Clips:
    """Render, caption and encode ``count`` clips of the training split.

    ``weigh`` adds the loss weights: latents under the objects count ``OBJECT_WEIGHT`` times. They
    are a tenth of the picture and hold most of what a caption says; what is optimal for each latent
    stays the same.
    """
    latents, ids, weights = [], [], []
    for start in range(0, count, 128):
        batch = world.random_batch(min(128, count - start), generator)
        state = generator.get_state()
        video = world.render(batch, generator, device=device)
        if weigh:
            again = torch.Generator()
            again.set_state(state)
            weights.append(_object_weight(video, world.render(batch, again, device=device, objects=False)))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            mean = vae.encode(video.permute(0, 2, 1, 3, 4) * 2.0 - 1.0).latent_dist.mean
        latents.append((mean.float() * vae.config.scaling_factor).permute(0, 2, 1, 3, 4).half())
        name = torch.rand(len(video), generator=generator) >= AND_FRACTION
        clips = zip(world.decode_clips(batch), name.tolist(), strict=True)
        captions = [spec.caption(clip, name_relation=named) for clip, named in clips]
        ids.append(components.tokenize(tokenizer, captions))
    weight = torch.cat(weights) if weigh else torch.ones((), device=device)
    return Clips(torch.cat(latents), torch.cat(ids).to(device), weight)


def _object_weight(video: Tensor, background: Tensor) -> Tensor:
    """Half [B, T', 1, H', W'] on the latent grid, mean near 1, from where the two videos differ."""
    differs = ((video - background).abs().amax(dim=2, keepdim=True) > 0.02).float()
    space = components.SPATIAL_COMPRESSION
    cells = nn.functional.max_pool2d(differs.flatten(0, 1), space).unflatten(0, differs.shape[:2])
    rest = cells[:, 1:].unflatten(1, (-1, components.TEMPORAL_COMPRESSION)).amax(dim=2)
    weight = 1.0 + (OBJECT_WEIGHT - 1.0) * torch.cat([cells[:, :1], rest], dim=1)
    return (weight / weight.mean()).half()


def v_prediction_batch(
    clips: Clips, alphas: Tensor, empty: Tensor, size: int, generator: torch.Generator
) -> NoisyBatch:
    """Draw clips, noise and uniform timesteps; a tenth of the captions become ``empty`` [1, L]."""
    device = clips.latents.device
    rows = torch.randint(len(clips.latents), (size,), device=device, generator=generator)
    clean = clips.latents[rows].float()
    noise = torch.randn(clean.shape, device=device, generator=generator)
    timestep = torch.randint(len(alphas), (size,), device=device, generator=generator)
    signal = alphas[timestep].sqrt()[:, None, None, None, None]
    sigma = (1.0 - alphas[timestep]).sqrt()[:, None, None, None, None]
    drop = torch.rand(size, device=device, generator=generator) < CAPTION_DROPOUT
    ids = torch.where(drop[:, None], empty, clips.ids[rows])
    weight = clips.weight[rows].float() if clips.weight.dim() else clips.weight
    return NoisyBatch(signal * clean + sigma * noise, ids, timestep, signal * noise - sigma * clean, weight)


def train(
    model: TextToVideo, clips: Clips, empty: Tensor, budget: Budget, args: argparse.Namespace
) -> list[list[float]]:
    """Train in place, leaving the weight average in ``model``; returns [step, loss] rows."""
    device = clips.latents.device
    cuda = device.type == "cuda"
    trained = list(model.parameters())
    optimizer = torch.optim.AdamW(trained, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=cuda)
    average = Average(model, args.average)
    forward: nn.Module = torch.compile(model) if args.compile else model  # type: ignore[assignment]
    alphas = components.build_scheduler().alphas_cumprod.float().to(device)
    generator = torch.Generator(device).manual_seed(1000 + rank())
    curve: list[list[float]] = []
    running = torch.zeros((), device=device)
    while not budget.over(device):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args.lr, budget.fraction, step=budget.step)
        drawn = v_prediction_batch(clips, alphas, empty, args.batch, generator)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=cuda):
            output = forward(drawn.noisy, drawn.ids, drawn.timestep)
        error = (output.float() - drawn.target).square()
        loss = (drawn.weight * error).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(trained)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        average.update()
        running.lerp_(error.detach().mean(), 0.02 if budget.step else 1.0)  # unweighted: comparable
        if budget.step % 200 == 0:
            curve.append([budget.step, round(running.item(), 5)])
            log.info("step %d loss %.4f %.0f s", *curve[-1], budget.seconds)
        budget.step += 1
    average.copy_to_model()
    return curve


def save(model: TextToVideo, vae: AutoencoderKLCogVideoX, tokenizer: Any, folder: Path) -> None:
    """The pipeline in bf16, under ``folder/pipeline``."""
    parts: list[Any] = [vae, model.transformer]
    for part in parts:
        part.register_to_config(_name_or_path="")  # else the config names the folder it was read from
    pipeline = CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=model.text_encoder.to(torch.bfloat16),
        vae=vae.to(torch.bfloat16),
        transformer=model.transformer.to(torch.bfloat16),
        scheduler=components.build_scheduler(),
    )
    pipeline.save_pretrained(folder / "pipeline")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--clips", type=int, default=65536, help="training clips per process")
    parser.add_argument("--batch", type=int, default=256, help="batch per process")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--average", type=float, default=0.9995)
    parser.add_argument("--seed", type=int, default=0, help="of the clips; another one with --init")
    parser.add_argument("--init", type=Path, help="pipeline folder to go on from")
    parser.add_argument("--heads", type=int, default=6, help="attention heads of 40; without --init")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = start_processes(args.device)
    budget = Budget(args.steps, args.minutes)
    vae = AutoencoderKLCogVideoX.from_pretrained(args.vae, dtype=torch.float32).to(device).eval()
    tokenizer = components.build_tokenizer()
    torch.manual_seed(0)
    if args.init:
        start = CogVideoXPipeline.from_pretrained(args.init, dtype=torch.float32)
        text_encoder, transformer = start.text_encoder, start.transformer
    else:
        text_encoder = components.build_text_encoder(len(tokenizer))
        transformer = components.build_transformer(vae.config.latent_channels, args.heads)
    model = TextToVideo(text_encoder, transformer).to(device).train()
    generator = torch.Generator().manual_seed(7919 * (args.seed + 1) + rank())
    clips = encode_clips(vae, tokenizer, args.clips, generator, device, weigh=True)
    empty = components.tokenize(tokenizer, [""]).to(device)
    log.info("%d clips per process encoded, latent std %.3f", len(clips.latents), clips.latents.float().std())

    budget.begin()
    curve = train(model, clips, empty, budget, args)
    if rank() == 0:
        save(model, vae, tokenizer, args.out)
        record = {k: v for k, v in vars(args).items() if k not in {"out", "vae", "init", "device"}}
        record["continued"] = args.init is not None
        facts = {
            "steps_done": budget.step,
            "seconds": round(budget.seconds),
            "processes": dist.get_world_size() if dist.is_initialized() else 1,
        }
        write_json(args.out / "training.json", {**record, **facts, **environment(device), "curve": curve})
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
