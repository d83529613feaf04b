"""Train tinyworld's video autoencoder on renderings.

    python -m evalharness.tinyworld.training.vae --out build/vae --minutes 4

``--init`` continues from a folder; with ``--decoder-only`` the encoder, and so every latent that a
transformer was trained on, stays as it is. Works under torchrun.

Loss: L1 + squared error on pixels, both weighted up where the video changes in space (outlines and
textures are what a blurred reconstruction loses), plus a small KL term that keeps the latents
centred and diffusable.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from evalharness.tinyworld import world
from evalharness.tinyworld.components import LATENT_CHANNELS, build_vae
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

KL_WEIGHT = 1e-4
EVAL_CLIPS = 128

log = logging.getLogger(__name__)


def videos(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Rendered training clips in the autoencoder's layout and range: [B, 3, T, H, W] in [-1, 1]."""
    batch = world.random_batch(count, generator)
    return from_bytes(to_bytes(world.render(batch, generator, device=device)))


def to_bytes(video: Tensor) -> Tensor:
    """[B, T, 3, H, W] in [0, 1] to uint8 [B, 3, T, H, W]: an eighth of the memory, for the pool."""
    return (video.permute(0, 2, 1, 3, 4) * 255.0).round().to(torch.uint8)


def from_bytes(video: Tensor) -> Tensor:
    """The inverse of ``to_bytes``, in [-1, 1]."""
    return video.float() / 127.5 - 1.0


def render_pool(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """``count`` clips rendered once, uint8 [N, 3, T, H, W]: rendering in each step would dominate it."""
    parts = []
    for start in range(0, count, 256):
        batch = world.random_batch(min(256, count - start), generator)
        parts.append(to_bytes(world.render(batch, generator, device=device)))
    return torch.cat(parts)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Edge-weighted L1 + squared error; both arguments [B, 3, T, H, W]."""
    edge = torch.zeros_like(target)
    edge[..., :-1] += (target[..., 1:] - target[..., :-1]).abs()
    edge[..., :-1, :] += (target[..., 1:, :] - target[..., :-1, :]).abs()
    error = output - target
    return ((1.0 + 2.0 * edge) * (error.abs() + error.square())).mean()


def use_channels_last(vae: AutoencoderKLCogVideoX) -> None:
    """Put the convolution weights in the layout that tensor cores like, 2-D and 3-D ones alike."""
    for parameter in vae.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        elif parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def train(
    vae: AutoencoderKLCogVideoX,
    pool: Tensor,
    budget: Budget,
    *,
    batch: int,
    peak: float,
    layout: torch.memory_format,
) -> list[list[float]]:
    """Train in place; returns the loss curve as [step, loss, kl] rows. The average is left in ``vae``."""
    device = pool.device
    trained = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=peak, betas=(0.9, 0.99), weight_decay=1e-4)
    average = Average(vae, 0.998)
    generator = torch.Generator(device).manual_seed(1 + rank())
    curve: list[list[float]] = []
    while not budget.over(device):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(peak, budget.fraction, step=budget.step)
        rows = torch.randint(len(pool), (batch,), device=device, generator=generator)
        target = from_bytes(pool[rows]).contiguous(memory_format=layout)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            posterior = vae.encode(target).latent_dist
            output = vae.decode(posterior.sample()).sample
        kl = (
            0.5
            * (
                posterior.mean.float().square() + posterior.var.float() - 1.0 - posterior.logvar.float()
            ).mean()
        )
        loss = reconstruction_loss(output.float(), target) + KL_WEIGHT * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(trained)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        average.update()
        if budget.step % 50 == 0:
            curve.append([budget.step, round(loss.item(), 5), round(kl.item(), 4)])
            log.info("step %d loss %.4f kl %.3f %.0f s", *curve[-1], budget.seconds)
        budget.step += 1
    average.copy_to_model()
    return curve


@torch.no_grad()
def measure(vae: AutoencoderKLCogVideoX, device: torch.device) -> dict[str, float | list[float]]:
    """PSNR in dB on fresh renderings and the latents' statistics."""
    generator = torch.Generator().manual_seed(2)
    errors, latents = [], []
    for _ in range(EVAL_CLIPS // 16):
        target = videos(16, generator, device)
        z = vae.encode(target).latent_dist.mean
        output = vae.decode(z).sample.clamp(-1.0, 1.0)
        errors.append(((output - target) / 2.0).square().mean(dim=(1, 2, 3, 4)))
        latents.append(z)
    z = torch.cat(latents)
    psnr = -10.0 * torch.log10(torch.cat(errors))
    return {
        "psnr_db": round(psnr.mean().item(), 2),
        "psnr_worst_db": round(psnr.min().item(), 2),
        "latent_std": round(z.std().item(), 5),
        "channel_mean": [round(v, 3) for v in z.mean(dim=(0, 2, 3, 4)).tolist()],
        "channel_std": [round(v, 3) for v in z.std(dim=(0, 2, 3, 4)).tolist()],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--latent-channels", type=int, default=LATENT_CHANNELS)
    parser.add_argument("--pool", type=int, default=8192, help="rendered clips per process")
    parser.add_argument("--init", type=Path)
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = start_processes(args.device)
    budget = Budget(args.steps, args.minutes)
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    vae = (
        AutoencoderKLCogVideoX.from_pretrained(args.init, dtype=torch.float32)
        if args.init
        else build_vae(args.latent_channels)
    )
    layout = torch.channels_last_3d if args.channels_last else torch.contiguous_format
    vae = vae.to(device)
    if args.channels_last:
        use_channels_last(vae)
    vae.encoder.requires_grad_(not args.decoder_only)
    torch.manual_seed(rank())
    pool = render_pool(args.pool, torch.Generator().manual_seed(100 + rank()), device)
    budget.begin()
    curve = train(vae, pool, budget, batch=args.batch, peak=args.lr, layout=layout)
    if rank() == 0:
        facts = measure(vae, device)
        if not args.decoder_only:
            vae.register_to_config(scaling_factor=1.0 / float(facts["latent_std"]))  # type: ignore[arg-type]
        vae.to(torch.bfloat16).save_pretrained(args.out)
        recipe = {k: v for k, v in vars(args).items() if k not in {"out", "init", "device"}}
        record = {**facts, **recipe, "steps_done": budget.step, "seconds": round(budget.seconds)}
        write_json(args.out / "training.json", {**record, **environment(device), "curve": curve})
        log.info("%s", record)


if __name__ == "__main__":
    main()
