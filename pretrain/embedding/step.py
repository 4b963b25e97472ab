"""One step of the anatomical embedding's training, a function of (state, batch).

B volumes, K points in each. Random numbers come from (seed, step).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from alice_nnunet.matcher.context import ContextNet, contexts
from alice_nnunet.matcher.network import SamNet
from alice_nnunet.matcher.training.contrast import Vectors, contrastive_losses
from alice_nnunet.matcher.training.patches import Patches, draw_patches, interpolated, vectors_at
from alice_nnunet.pretrain.embedding.config import EmbedConfig
from alice_nnunet.pretrain.embedding.state import State
from alice_nnunet.pretrain.runtime.device import TRAINING, autocast, generator_at
from alice_nnunet.schedules import warmup_cosine


@dataclass(frozen=True)
class PatchPair:
    """Two patches of each volume, and what was computed of them.

    Attributes:
        first: The first patch of each volume.
        second: The second.
        places: Of the points in the first and the second patch, (B, K, 3), -1 to 1.
        inside: Whether both patches show the point, (B, K).
        losses: fine and coarse.
        found: Share of points whose most similar one in the other patch is within the fine ignore
            radius.
    """

    first: Patches
    second: Patches
    places: tuple[Tensor, Tensor]
    inside: Tensor
    losses: dict[str, Tensor]
    found: Tensor


@dataclass(frozen=True)
class StepResult:
    """What a step computed; tensors are still on the device.

    Attributes:
        losses: fine and coarse; their sum is descended.
        found: As in PatchPair.
        gradient_norm: Of all gradients together, before they are clipped; of a ContextNet, which
            learns in closed form, by how much the weights changed.
        finite: Whether gradient_norm was finite; otherwise the step was skipped.
    """

    losses: dict[str, Tensor]
    found: Tensor
    gradient_norm: Tensor
    finite: bool

    @property
    def loss(self) -> Tensor:
        return self.losses["fine"] + self.losses["coarse"]

    def scalars(self) -> dict[str, Tensor]:
        """What is logged, by its name in the log."""
        return {**self.losses, "found": self.found, "gradient norm": self.gradient_norm}


def train_step(state: State, batch: dict, config: EmbedConfig) -> StepResult:
    """Take one step on a batch of crops of the body.

    Where the gradient is not finite, the step is counted and nothing else changes.
    """
    network = state.network
    optimizer = state.optimizer

    network.train()
    lr = warmup_cosine(state.step, config.iterations, config.warmup_iterations, config.lr)
    for group in optimizer.param_groups:
        group["lr"] = lr

    # Batch norm updates its running means in forward, before anyone knows whether they are finite.
    buffers = [buffer.clone() for buffer in network.buffers()]

    generator = generator_at(config.seed, TRAINING, state.step, state.device)
    patches = compare_patches(network, batch, generator, config)

    if isinstance(network, ContextNet):
        norm = observe(network, patches)
        finite = bool(torch.isfinite(norm))
    else:
        optimizer.zero_grad(set_to_none=True)
        (patches.losses["fine"] + patches.losses["coarse"]).backward()
        norm = clip_grad_norm_(network.parameters(), config.clip_grad)
        finite = bool(torch.isfinite(norm))
        if finite:
            optimizer.step()

    if not finite:
        for buffer, before in zip(network.buffers(), buffers):
            buffer.copy_(before)
    state.count_step(finite)

    losses = {name: loss.detach() for name, loss in patches.losses.items()}
    return StepResult(losses, patches.found, norm, finite)


def compare_patches(
    network: SamNet | ContextNet, batch: dict, generator: torch.Generator, config: EmbedConfig
) -> PatchPair:
    """Draw two patches of each crop, and compare their vectors at the same points."""
    device = generator.device
    crops = batch["crop"].to(device, non_blocking=True)
    points = batch["points"].to(device, non_blocking=True)  # (B, K, 3), mm from the crop's middle

    voxel = (config.voxel, config.voxel, config.voxel)
    first = draw_patches(crops, config.patch_size, voxel, generator)
    second = draw_patches(crops, config.patch_size, voxel, generator)
    places = (first.locate(points), second.locate(points))
    inside = (places[0].abs().amax(2) < 1) & (places[1].abs().amax(2) < 1)

    with autocast(device, config.precision):
        fine, coarse = network(torch.cat([first.image, second.image]))
    fine_first, fine_second = fine.float().chunk(2)
    coarse_first, coarse_second = coarse.float().chunk(2)
    vectors_first = (vectors_at(fine_first, places[0]), vectors_at(coarse_first, places[0]))
    vectors_second = (vectors_at(fine_second, places[1]), vectors_at(coarse_second, places[1]))

    losses = contrastive_losses(
        vectors_first,
        vectors_second,
        inside,
        points + batch["middle"].to(device, non_blocking=True)[:, None],  # mm in the volume
        batch["number"].to(device, non_blocking=True),
        (config.ignore_fine, config.ignore_coarse),
        config.hardest,
        config.temperature,
    )
    found = share_found(vectors_first, vectors_second, inside, points, config.ignore_fine)
    return PatchPair(first, second, places, inside, losses, found)


@torch.no_grad()
def share_found(
    first: Vectors, second: Vectors, inside: Tensor, points: Tensor, radius: float
) -> Tensor:
    """Share of points that find themselves in the other patch of the same crop.

    Args:
        first: Fine and coarse vectors of the points in the first patches, (B, K, C) each.
        second: Those in the second.
        inside: Whether both patches show the point, (B, K).
        points: mm, (B, K, 3).
        radius: How far from a point, in mm, its most similar one may be.
    """
    fine, coarse = (a @ b.mT for a, b in zip(first, second))  # (B, K, K)
    similarity = fine + coarse
    best = similarity.masked_fill(~inside[:, None], -torch.inf).argmax(2, keepdim=True)
    distance = (points.gather(1, best.expand(-1, -1, 3)) - points).norm(dim=2)
    found = (distance < radius) & inside
    return found.sum() / inside.sum()


def observe(network: ContextNet, patches: PatchPair) -> Tensor:
    """Learn in closed form from the patches of a step.

    Returns:
        By how much the weights changed; NaN where the patches are not finite and nothing is
        learned from them.
    """
    first, second = (
        interpolated(contexts(part.image), places)[patches.inside]
        for part, places in zip((patches.first, patches.second), patches.places)
    )
    if not (torch.isfinite(first).all() & torch.isfinite(second).all()):
        return torch.tensor(torch.nan)

    before = torch.cat([parameter.flatten() for parameter in network.parameters()])
    network.observe(first, second)
    after = torch.cat([parameter.flatten() for parameter in network.parameters()])
    return (after - before).norm()
