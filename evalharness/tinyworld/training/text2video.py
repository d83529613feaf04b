"""Train tinyworld's text encoder and transformer on the autoencoder's latents.

    torchrun --nproc-per-node 4 -m evalharness.tinyworld.training.text2video \
        --vae build/vae --out build/pipeline --minutes 6

Runs on one process as well (plain ``python -m``). Each process renders and encodes its own clips,
then trains v-prediction with 10 % caption dropout on the average of all processes' gradients.
``--resume`` starts from the float32 weights that an earlier call left in ``--out``.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from evalharness.tinyworld import components, spec, world
from evalharness.tinyworld.training.common import (
    Average,
    Budget,
    average_gradients,
    environment,
    learning_rate,
    rank,
    save_parts,
    start_processes,
    write_json,
)

CAPTION_DROPOUT = 0.1
AND_FRACTION = 0.3  # pairs whose caption says "and" instead of naming the relation

log = logging.getLogger(__name__)


class Clips(NamedTuple):
    """Encoded training clips on the device: ``latents`` [N, T, C, H, W] scaled; ``ids`` long [N, L]."""

    latents: Tensor
    ids: Tensor


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
    vae: AutoencoderKLCogVideoX, tokenizer: Any, count: int, generator: torch.Generator, device: torch.device
) -> Clips:
    """Render, caption and encode ``count`` clips of the training split."""
    latents, ids = [], []
    for start in range(0, count, 128):
        batch = world.random_batch(min(128, count - start), generator)
        video = world.render(batch, generator, device=device).permute(0, 2, 1, 3, 4) * 2.0 - 1.0
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            mean = vae.encode(video).latent_dist.mean
        latents.append((mean.float() * vae.config.scaling_factor).permute(0, 2, 1, 3, 4).half())
        name = torch.rand(len(video), generator=generator) >= AND_FRACTION
        clips = zip(world.decode_clips(batch), name.tolist(), strict=True)
        captions = [spec.caption(clip, name_relation=named) for clip, named in clips]
        ids.append(components.tokenize(tokenizer, captions))
    return Clips(torch.cat(latents), torch.cat(ids).to(device))


def v_prediction_batch(
    clips: Clips, alphas: Tensor, empty: Tensor, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw (noisy latents, token ids, timesteps, v target); uniform timesteps."""
    device = clips.latents.device
    rows = torch.randint(len(clips.latents), (size,), device=device, generator=generator)
    clean = clips.latents[rows].float()
    noise = torch.randn(clean.shape, device=device, generator=generator)
    timestep = torch.randint(len(alphas), (size,), device=device, generator=generator)
    signal = alphas[timestep].sqrt()[:, None, None, None, None]
    sigma = (1.0 - alphas[timestep]).sqrt()[:, None, None, None, None]
    drop = torch.rand(size, device=device, generator=generator) < CAPTION_DROPOUT
    ids = torch.where(drop[:, None], empty, clips.ids[rows])
    return signal * clean + sigma * noise, ids, timestep, signal * noise - sigma * clean


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
        noisy, ids, timestep, target = v_prediction_batch(clips, alphas, empty, args.batch, generator)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=cuda):
            output = forward(noisy, ids, timestep)
        loss = torch.nn.functional.mse_loss(output.float(), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(trained)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        average.update()
        running.lerp_(loss.detach(), 0.02 if budget.step else 1.0)
        if budget.step % 200 == 0:
            curve.append([budget.step, round(running.item(), 5)])
            log.info("step %d loss %.4f %.0f s", *curve[-1], budget.seconds)
        budget.step += 1
    average.copy_to_model()
    return curve


def save(model: TextToVideo, vae: nn.Module, tokenizer: Any, folder: Path) -> None:
    """The float32 weights for ``--resume``, and the pipeline in bf16."""
    save_parts(dict(model.named_parameters()), folder, "float32")
    pipeline = CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=model.text_encoder.to(torch.bfloat16),
        vae=vae.to(torch.bfloat16),
        transformer=model.transformer.to(torch.bfloat16),
        scheduler=components.build_scheduler(),
    )
    pipeline.save_pretrained(folder / "pipeline")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--clips", type=int, default=65536, help="training clips per process")
    parser.add_argument("--batch", type=int, default=256, help="batch per process")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--average", type=float, default=0.9995)
    parser.add_argument("--seed", type=int, default=0, help="of the clips; another one with --resume")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = start_processes(args.device)
    budget = Budget(args.steps, args.minutes)
    vae = AutoencoderKLCogVideoX.from_pretrained(args.vae, torch_dtype=torch.float32).to(device).eval()
    tokenizer = components.build_tokenizer()
    torch.manual_seed(0)
    text_encoder = components.build_text_encoder(len(tokenizer))
    model = TextToVideo(text_encoder, components.build_transformer(vae.config.latent_channels)).to(device)
    if args.resume:
        parts = sorted(args.out.glob("float32-*.safetensors"))
        weights = {name: tensor for part in parts for name, tensor in load_file(part).items()}
        for name, parameter in model.named_parameters():  # tied tensors appear once, unlike in state_dict
            parameter.data.copy_(weights[name])
    generator = torch.Generator().manual_seed(7919 * (args.seed + 1) + rank())
    clips = encode_clips(vae, tokenizer, args.clips, generator, device)
    empty = components.tokenize(tokenizer, [""]).to(device)
    log.info("%d clips per process encoded, latent std %.3f", len(clips.latents), clips.latents.float().std())

    budget.begin()
    curve = train(model, clips, empty, budget, args)
    if rank() == 0:
        save(model, vae, tokenizer, args.out)
        record = {k: v for k, v in vars(args).items() if k not in {"out", "vae", "device"}}
        facts = {"steps_done": budget.step, "seconds": round(budget.seconds), "processes": dist.get_world_size() if dist.is_initialized() else 1}
        write_json(args.out / "training.json", {**record, **facts, **environment(device), "curve": curve})
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
