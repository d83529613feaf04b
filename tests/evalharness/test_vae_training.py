"""The autoencoder's training: what its loss weighs, and that a frozen encoder's latents are kept."""

from __future__ import annotations

import pytest
import torch

from evalharness.tinyworld import components, world
from evalharness.tinyworld.training import vae as training


def test_objects_are_marked_where_the_picture_changes_without_them() -> None:
    generator = torch.Generator().manual_seed(4)
    again = torch.Generator()
    again.set_state(generator.get_state())
    video, objects = training.videos(3, generator, torch.device("cpu"))
    batch = world.random_batch(3, again)
    background = world.render(batch, again, objects=False).permute(0, 2, 1, 3, 4) * 2 - 1
    far = (video - background).abs().amax(1, keepdim=True) > 0.05  # in [-1, 1], above a byte's rounding
    assert bool(objects[far].all())
    assert 0.02 < objects.float().mean() < 0.6  # neither nothing nor everything
    changed = far.float()
    reach = torch.nn.functional.max_pool3d(changed, (1, 7, 7), 1, (0, 3, 3)) > 0
    assert not bool((objects & ~reach).any())  # no further than the margin, and a pixel of faint outline


@pytest.mark.parametrize(("marked", "weight"), [(False, 1.0), (True, training.OBJECT_WEIGHT)])
def test_loss_of_one_wrong_pixel(marked: bool, weight: float) -> None:
    """On a flat target there are no edges: weight * (|e| + e^2) / number of values."""
    target = torch.zeros(1, 3, 2, 4, 4)
    output = target.clone()
    output[0, 1, 1, 2, 3] = 0.5
    objects = torch.zeros(1, 1, 2, 4, 4, dtype=torch.bool)
    objects[0, 0, 1, 2, 3] = marked
    loss = training.reconstruction_loss(output, target, objects)
    assert loss.item() == pytest.approx(weight * (0.5 + 0.25) / target.numel())


def test_an_error_beside_an_edge_costs_three_times_as_much() -> None:
    target = torch.zeros(1, 3, 1, 1, 4)
    target[..., 2:] = 1.0  # the step lies between columns 1 and 2 and is booked to column 1
    nothing = torch.zeros(1, 1, 1, 1, 4, dtype=torch.bool)
    costs = []
    for column in (0, 1):
        output = target.clone()
        output[0, 0, 0, 0, column] += 0.1
        costs.append(training.reconstruction_loss(output, target, nothing).item())
    assert costs[1] == pytest.approx(3 * costs[0])


def test_decoder_training_leaves_the_encoder_and_uses_its_latents() -> None:
    torch.manual_seed(0)
    vae = components.build_vae()
    vae.encoder.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    pool = training.render_pool(2, torch.Generator().manual_seed(1), torch.device("cpu"), vae)
    assert pool.moments is not None
    with torch.no_grad():
        posterior = vae.encode(training.from_bytes(pool.video)).latent_dist
    mean, std = pool.moments.float().chunk(2, dim=1)
    torch.testing.assert_close(mean, posterior.mean, rtol=0.05, atol=0.05)  # bf16 and half
    torch.testing.assert_close(std, posterior.std, rtol=0.05, atol=0.05)

    step = training.Step(vae, pool, batch=2, peak=1e-3, layout=torch.contiguous_format)
    step.draw(torch.Generator().manual_seed(2))
    step()
    moved = {name for name, p in vae.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in moved)
