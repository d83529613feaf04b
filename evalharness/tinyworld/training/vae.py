"""Train tinyworld's video autoencoder on renderings.

    python -m evalharness.tinyworld.training.vae --out build/vae --minutes 4

``--init`` continues from a folder; with ``--decoder-only`` the encoder, and so every latent that a
transformer was trained on, stays as it is. Works under torchrun.

Loss: L1 + squared error on pixels, both weighted up where the video changes in space (outlines and
textures are what a blurred reconstruction loses) and under the objects, plus a small KL term that
keeps the latents centred and diffusable.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor, nn

from evalharness.tinyworld import world
from evalharness.tinyworld.components import LATENT_CHANNELS, build_vae
from evalharness.tinyworld.training.common import (
    Average,
    Budget,
    average_gradients,
    capture,
    environment,
    learning_rate,
    rank,
    start_processes,
    write_json,
)

KL_WEIGHT = 1e-4
EVAL_CLIPS = 128
OBJECT_WEIGHT = 4.0
OBJECT_MARGIN = 2  # pixels around an object that count as the object

log = logging.getLogger(__name__)


class Pool(NamedTuple):
    """Clips rendered once; rendering in each step would dominate it.

    Attributes:
        video: uint8 [N, 3, T, H, W].
        objects: bool [N, 1, T, H, W], where the objects and their surroundings are.
        moments: the frozen encoder's posterior mean and deviation, half [N, 2 C, T', H', W'], or None.
    """

    video: Tensor
    objects: Tensor
    moments: Tensor | None


def videos(count: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rendered training clips [B, 3, T, H, W] in [-1, 1], and where their objects are [B, 1, T, H, W]."""
    batch = world.random_batch(count, generator)
    again = torch.Generator()
    again.set_state(generator.get_state())
    video = world.render(batch, generator, device=device)
    differs = (video - world.render(batch, again, device=device, objects=False)).abs().amax(2) > 0.02
    near = nn.functional.max_pool2d(differs.float(), 2 * OBJECT_MARGIN + 1, 1, OBJECT_MARGIN) > 0
    return from_bytes(to_bytes(video)), near[:, None]


def to_bytes(video: Tensor) -> Tensor:
    """[B, T, 3, H, W] in [0, 1] to uint8 [B, 3, T, H, W]: an eighth of the memory, for the pool."""
    return (video.permute(0, 2, 1, 3, 4) * 255.0).round().to(torch.uint8)


def from_bytes(video: Tensor) -> Tensor:
    """The inverse of ``to_bytes``, in [-1, 1]."""
    return video.float() / 127.5 - 1.0


@torch.no_grad()
def render_pool(
    count: int, generator: torch.Generator, device: torch.device, encoder: AutoencoderKLCogVideoX | None
) -> Pool:
    """``count`` clips; with a frozen ``encoder`` also their latents."""
    parts = []
    for start in range(0, count, 128):
        video, objects = videos(min(128, count - start), generator, device)
        moments = torch.empty(0)
        if encoder is not None:
            with _autocast(device):
                posterior = encoder.encode(video).latent_dist
            moments = torch.cat([posterior.mean, posterior.std], dim=1).half()
        parts.append((((video + 1.0) * 127.5).round().to(torch.uint8), objects, moments))
    video, objects, moments = (torch.cat(column) for column in zip(*parts, strict=True))
    return Pool(video, objects, moments if encoder is not None else None)


def reconstruction_loss(output: Tensor, target: Tensor, objects: Tensor) -> Tensor:
    """L1 + squared error, weighted by edges and objects; [B, 3, T, H, W] and [B, 1, T, H, W]."""
    edge = torch.zeros_like(target)
    edge[..., :-1] += (target[..., 1:] - target[..., :-1]).abs()
    edge[..., :-1, :] += (target[..., 1:, :] - target[..., :-1, :]).abs()
    error = output - target
    weight = (1.0 + 2.0 * edge) * (1.0 + (OBJECT_WEIGHT - 1.0) * objects)
    return (weight * (error.abs() + error.square())).mean()


def _autocast(device: torch.device) -> torch.autocast:
    # No cache of cast weights: a captured step would go on reading the first step's.
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


def use_channels_last(vae: AutoencoderKLCogVideoX) -> None:
    """Put the convolution weights in the layout that tensor cores like, 2-D and 3-D ones alike."""
    for parameter in vae.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        elif parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


class Step:
    """One optimiser step on a batch of the pool; callable again and again, also as a CUDA graph.

    What changes from step to step (batch, noise, learning rate) lies in tensors of fixed address.
    """

    def __init__(
        self, vae: AutoencoderKLCogVideoX, pool: Pool, *, batch: int, peak: float, layout: torch.memory_format
    ) -> None:
        self.vae, self.pool, self.layout = vae, pool, layout
        self.trained = [p for p in vae.parameters() if p.requires_grad]
        device = pool.video.device
        cuda = device.type == "cuda"
        self.rate = torch.tensor(peak, device=device)
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=self.rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=cuda, capturable=cuda
        )
        self.rows = torch.zeros(batch, dtype=torch.long, device=device)
        self.noise = torch.zeros((), device=device)
        if pool.moments is not None:
            self.noise = (
                torch.zeros_like(pool.moments[:1].chunk(2, dim=1)[0]).float().expand(batch, -1, -1, -1, -1)
            )
            self.noise = self.noise.contiguous()

    def draw(self, generator: torch.Generator) -> None:
        """Choose the next batch and its noise."""
        self.rows.random_(len(self.pool.video), generator=generator)
        self.noise.normal_(generator=generator)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Loss and KL term."""
        self.optimizer.zero_grad(set_to_none=True)
        target = from_bytes(self.pool.video[self.rows]).contiguous(memory_format=self.layout)
        kl = torch.zeros((), device=target.device)
        with _autocast(target.device):
            if self.pool.moments is not None:
                mean, std = self.pool.moments[self.rows].float().chunk(2, dim=1)
                output = self.vae.decode(mean + std * self.noise).sample
            else:
                posterior = self.vae.encode(target).latent_dist
                output = self.vae.decode(posterior.sample()).sample
                mean, logvar = posterior.mean.float(), posterior.logvar.float()
                kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        loss = reconstruction_loss(output.float(), target, self.pool.objects[self.rows]) + KL_WEIGHT * kl
        loss.backward()
        average_gradients(self.trained)
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        return loss.detach(), kl.detach()


def train(step: Step, budget: Budget, *, peak: float, captured: bool) -> list[list[float]]:
    """Train in place; returns the loss curve as [step, loss, kl] rows. The average is left in the model."""
    device = step.rate.device
    average = Average(step.vae, 0.998)
    generator = torch.Generator(device).manual_seed(1 + rank())
    step.draw(generator)
    step.rate.fill_(learning_rate(peak, 0.0, step=0))  # recording begins with steps of its own
    run: Callable[[], tuple[Tensor, Tensor]] = capture(step) if captured else step
    curve: list[list[float]] = []
    while not budget.over(device):
        step.rate.fill_(learning_rate(peak, budget.fraction, step=budget.step))
        step.draw(generator)
        loss, kl = run()
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
        target, _ = videos(16, generator, device)
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
    parser.add_argument("--seed", type=int, default=100, help="of the clips; another one with --init")
    parser.add_argument("--init", type=Path)
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--graph", action="store_true", help="replay each step as one CUDA graph")
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
    generator = torch.Generator().manual_seed(args.seed + rank())
    pool = render_pool(args.pool, generator, device, vae if args.decoder_only else None)
    budget.begin()
    step = Step(vae, pool, batch=args.batch, peak=args.lr, layout=layout)
    curve = train(step, budget, peak=args.lr, captured=args.graph)
    if rank() == 0:
        facts = measure(vae, device)
        if not args.decoder_only:
            vae.register_to_config(scaling_factor=1.0 / float(facts["latent_std"]))  # type: ignore[arg-type]
        vae.register_to_config(_name_or_path="")
        vae.to(torch.bfloat16).save_pretrained(args.out)
        recipe = {k: v for k, v in vars(args).items() if k not in {"out", "init", "device"}}
        record = {**facts, **recipe, "steps_done": budget.step, "seconds": round(budget.seconds)}
        write_json(args.out / "training.json", {**record, **environment(device), "curve": curve})
        log.info("%s", record)


if __name__ == "__main__":
    main()
