"""Train tinyworld's video autoencoder on renderings.

    python -m evalharness.tinyworld.training.vae --out build/vae --minutes 4

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
from evalharness.tinyworld.training.common import Average, Budget, environment, learning_rate, write_json

KL_WEIGHT = 1e-4
EVAL_CLIPS = 128

log = logging.getLogger(__name__)


def videos(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Rendered training clips in the autoencoder's layout and range: [B, 3, T, H, W] in [-1, 1]."""
    batch = world.random_batch(count, generator)
    return world.render(batch, generator, device=device).permute(0, 2, 1, 3, 4) * 2.0 - 1.0


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Edge-weighted L1 + squared error; both arguments [B, 3, T, H, W]."""
    edge = torch.zeros_like(target)
    edge[..., :-1] += (target[..., 1:] - target[..., :-1]).abs()
    edge[..., :-1, :] += (target[..., 1:, :] - target[..., :-1, :]).abs()
    error = output - target
    return ((1.0 + 2.0 * edge) * (error.abs() + error.square())).mean()


def train(vae: AutoencoderKLCogVideoX, budget: Budget, *, batch: int, peak: float, device: torch.device) -> list:
    """Train in place; returns the loss curve as [step, loss, kl] rows. The average is left in ``vae``."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-4)
    average = Average(vae, 0.998)
    generator = torch.Generator().manual_seed(1)
    curve = []
    while budget.fraction < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(peak, budget.fraction, step=budget.step)
        target = videos(batch, generator, device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            posterior = vae.encode(target).latent_dist
            output = vae.decode(posterior.sample()).sample
        kl = 0.5 * (posterior.mean.float().square() + posterior.var.float() - 1.0 - posterior.logvar.float()).mean()
        loss = reconstruction_loss(output.float(), target) + KL_WEIGHT * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--latent-channels", type=int, default=LATENT_CHANNELS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    device = torch.device(args.device)
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    vae = build_vae(args.latent_channels).to(device)
    budget = Budget(args.steps, args.minutes)
    curve = train(vae, budget, batch=args.batch, peak=args.lr, device=device)
    facts = measure(vae, device)
    vae.register_to_config(scaling_factor=1.0 / float(facts["latent_std"]))  # type: ignore[arg-type]
    vae.to(torch.bfloat16).save_pretrained(args.out)
    record = {**facts, "steps": budget.step, "seconds": round(budget.seconds), "batch": args.batch, "lr": args.lr}
    write_json(args.out / "training.json", {**record, **environment(device), "curve": curve})
    log.info("%s", record)


if __name__ == "__main__":
    main()
