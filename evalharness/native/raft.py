"""RAFT, large (Teed and Deng 2020), for inference: flow of many pairs with each frame encoded once.

Parameters are named as in the published checkpoints. Only the last of the iterations is upsampled, since
the others' full-size flow is used in training alone; and what the GRU makes of the context, which stays
the same, is worked out once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ITERATIONS", "MIN_SIDE", "Raft", "padded"]

ITERATIONS = 20
LEVELS, RADIUS = 4, 4
HIDDEN = 128
MIN_SIDE = 128  # pixels: below, the coarsest correlations are of one pixel and sampling divides by 0


def padded(images: Tensor) -> Tensor:
    """[..., H, W] with borders repeated to multiples of 8, half on either side."""
    height, width = images.shape[-2:]
    down, across = -height % 8, -width % 8
    sides = [across // 2, across - across // 2, down // 2, down - down // 2]
    return functional.pad(images, sides, mode="replicate")


class FrozenNorm(nn.Module):
    """Batch norm with the statistics of training."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


def _norm(channels: int, batch_norm: bool) -> nn.Module:
    return FrozenNorm(channels) if batch_norm else nn.InstanceNorm2d(channels)


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.norm1 = _norm(outputs, batch_norm)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norm2 = _norm(outputs, batch_norm)
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), _norm(outputs, batch_norm))
        self.downsample = shortcut if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu_(self.norm1(self.conv1(x)))
        y = functional.relu_(self.norm2(self.conv2(y)))
        return functional.relu_(self.downsample(x) + y)


class Encoder(nn.Module):
    """[B, 3, H, W] to [B, 256, H / 8, W / 8]."""

    def __init__(self, *, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3)
        self.norm1 = _norm(64, batch_norm)
        widths = ((64, 64, 1), (64, 96, 2), (96, 128, 2))
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                Residual(inputs, outputs, stride, batch_norm=batch_norm),
                Residual(outputs, outputs, 1, batch_norm=batch_norm),
            )
            for inputs, outputs, stride in widths
        )
        self.conv2 = nn.Conv2d(128, 256, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu_(self.norm1(self.conv1(x)))
        out: Tensor = self.conv2(self.layer3(self.layer2(self.layer1(x))))
        return out


class MotionEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convc1 = nn.Conv2d(LEVELS * (2 * RADIUS + 1) ** 2, 256, 1)
        self.convc2 = nn.Conv2d(256, 192, 3, 1, 1)
        self.convf1 = nn.Conv2d(2, 128, 7, 1, 3)
        self.convf2 = nn.Conv2d(128, 64, 3, 1, 1)
        self.conv = nn.Conv2d(192 + 64, HIDDEN - 2, 3, 1, 1)

    def forward(self, flow: Tensor, correlation: Tensor) -> Tensor:
        seen = functional.relu_(self.convc2(functional.relu_(self.convc1(correlation))))
        moved = functional.relu_(self.convf2(functional.relu_(self.convf1(flow))))
        both = functional.relu_(self.conv(torch.cat([seen, moved], dim=1)))
        return torch.cat([both, flow], dim=1)


class Gates(NamedTuple):
    """One direction of the GRU with the context's part of its convolutions worked out.

    Of each weight the columns of hidden state and motion are left; update and reset gate, which see the
    same, are one convolution.
    """

    both: Tensor
    both_fixed: Tensor
    candidate: Tensor
    candidate_fixed: Tensor
    padding: tuple[int, int]


class SeparableGru(nn.Module):
    """A convolutional GRU along rows, then one along columns."""

    def __init__(self) -> None:
        super().__init__()
        for number, (kernel, padding) in enumerate((((1, 5), (0, 2)), ((5, 1), (2, 0))), start=1):
            for gate in "zrq":
                conv = nn.Conv2d(3 * HIDDEN, HIDDEN, kernel, padding=padding)
                self.add_module(f"conv{gate}{number}", conv)

    def gates(self, context: Tensor) -> list[Gates]:
        """What stays the same over the iterations; a third of the GRU's arithmetic."""
        found = []
        for number in (1, 2):
            update, reset, candidate = (getattr(self, f"conv{gate}{number}") for gate in "zrq")
            padding: tuple[int, int] = update.padding
            pairs = (
                (torch.cat([update.weight, reset.weight]), torch.cat([update.bias, reset.bias])),
                (candidate.weight, candidate.bias),
            )
            parts: list[Tensor] = []
            for weight, bias in pairs:
                hidden, fixed, motion = weight.split(HIDDEN, dim=1)
                parts += [
                    torch.cat([hidden, motion], dim=1),
                    functional.conv2d(context, fixed, bias, padding=padding),
                ]
            found.append(Gates(parts[0], parts[1], parts[2], parts[3], padding))
        return found

    def forward(self, hidden: Tensor, motion: Tensor, gates: list[Gates]) -> Tensor:
        for gate in gates:
            seen = torch.cat([hidden, motion], dim=1)
            both = functional.conv2d(seen, gate.both, padding=gate.padding).add_(gate.both_fixed)
            z, r = both.sigmoid_().chunk(2, dim=1)
            seen = torch.cat([r * hidden, motion], dim=1)
            q = functional.conv2d(seen, gate.candidate, padding=gate.padding).add_(gate.candidate_fixed)
            hidden = torch.lerp(hidden, q.tanh_(), z)
        return hidden


class FlowHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(HIDDEN, 256, 3, 1, 1)
        self.conv2 = nn.Conv2d(256, 2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(functional.relu_(self.conv1(x)))
        return out


class Update(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = MotionEncoder()
        self.gru = SeparableGru()
        self.flow_head = FlowHead()
        self.mask = nn.Sequential(nn.Conv2d(HIDDEN, 256, 3, 1, 1), nn.ReLU(), nn.Conv2d(256, 64 * 9, 1))


class Raft(nn.Module):
    """Images are [B, 3, H, W], float32, 0..255, H and W multiples of 8 and at least ``MIN_SIDE``."""

    def __init__(self) -> None:
        super().__init__()
        self.fnet = Encoder(batch_norm=False)
        self.cnet = Encoder(batch_norm=True)
        self.update_block = Update()

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What pairs are compared by, and the context of each as a pair's first: [B, 256, H/8, W/8] both."""
        scaled = 2 * (images / 255.0) - 1.0
        return self.fnet(scaled), self.cnet(scaled)

    def flow(self, first: Tensor, second: Tensor, context: Tensor, iterations: int = ITERATIONS) -> Tensor:
        """Flow [B, 2, H, W] (x, y) in pixels from features of both frames and the first's context."""
        pyramid = _pyramid(first, second)
        hidden, inputs = torch.tanh(context[:, :HIDDEN]), torch.relu(context[:, HIDDEN:])
        gates = self.update_block.gru.gates(inputs)
        start = _grid(context)
        place = start
        windows = [_window(correlation, number) for number, correlation in enumerate(pyramid)]
        for _ in range(iterations):
            moved = place - start
            seen = self.update_block.encoder(moved, _look_up(windows, place))
            hidden = self.update_block.gru(hidden, seen, gates)
            place = place + self.update_block.flow_head(hidden)
        return _upsampled(place - start, 0.25 * self.update_block.mask(hidden))

    def forward(self, first: Tensor, second: Tensor, iterations: int = ITERATIONS) -> Tensor:
        """Flow [B, 2, H, W] from images ``first`` to ``second``."""
        count = len(first)
        compared, context = self.features(torch.cat([first, second]))
        return self.flow(compared[:count], compared[count:], context[:count], iterations)


def _grid(like: Tensor) -> Tensor:
    """Positions [B, 2, h, w], x before y."""
    batch, _, height, width = like.shape
    y, x = torch.meshgrid(
        torch.arange(height, device=like.device), torch.arange(width, device=like.device), indexing="ij"
    )
    return torch.stack([x, y]).to(like.dtype).expand(batch, -1, -1, -1)


class Window(NamedTuple):
    """Where one level of correlations is looked up: at ``centre * stretch + offsets``, -1..1 being inside.

    Made once for all iterations: what is sent to a GPU from the host makes the host wait for it.
    """

    correlation: Tensor
    stretch: Tensor
    offsets: Tensor


def _pyramid(first: Tensor, second: Tensor) -> list[Tensor]:
    """All-pairs correlation, [B * h * w, 1, h / 2^l, w / 2^l] at each level."""
    batch, channels, height, width = first.shape
    # Of 256 channels the root is 16: to divide the product, which is larger, gives the same bits.
    volume = (first / channels**0.5).flatten(2).transpose(1, 2) @ second.flatten(2)
    level = volume.reshape(batch * height * width, 1, height, width)
    levels = [level]
    for _ in range(LEVELS - 1):
        level = functional.avg_pool2d(level, 2, 2)
        levels.append(level)
    return levels


def _window(correlation: Tensor, level: int) -> Window:
    """Of 9 x 9 places around a centre in whole cells of level 0."""
    rows, columns = correlation.shape[-2:]
    steps = torch.linspace(
        -RADIUS, RADIUS, 2 * RADIUS + 1, device=correlation.device, dtype=correlation.dtype
    )
    # The published network adds the row's step to x and the column's to y: its weights expect that.
    window = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)
    scale = correlation.new_tensor([2.0 / (columns - 1), 2.0 / (rows - 1)])
    return Window(correlation, scale / 2**level, window * scale - 1)


def _look_up(windows: list[Window], place: Tensor) -> Tensor:
    """Correlations in a window of 9 x 9 around ``place`` at each level, [B, 4 * 81, h, w]."""
    batch, _, height, width = place.shape
    centre = place.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
    found = []
    for correlation, stretch, offsets in windows:
        at = torch.addcmul(offsets, centre, stretch)
        # Not ``grid_sample``: on a GPU it would hand this to cuDNN, which refuses over 65,535 pictures.
        sampled = torch.grid_sampler_2d(correlation, at, 0, 0, True)  # bilinear, zeros outside
        found.append(sampled.view(batch, height, width, -1))
    return torch.cat(found, dim=-1).permute(0, 3, 1, 2).contiguous()


def _upsampled(flow: Tensor, mask: Tensor) -> Tensor:
    """Eight times larger, each pixel a convex combination of nine coarse neighbours."""
    batch, _, height, width = flow.shape
    weights = mask.view(batch, 1, 9, 8, 8, height, width).softmax(dim=2)
    coarse = functional.unfold(8 * flow, 3, padding=1).view(batch, 2, 9, 1, 1, height, width)
    fine = (weights * coarse).sum(dim=2).permute(0, 1, 4, 2, 5, 3)
    return fine.reshape(batch, 2, 8 * height, 8 * width)
