"""Models and views of the methods of pretraining, and crops that can be learned."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from alice_nnunet.data.pairs import PairBatch
from alice_nnunet.model.losses import effective_rank
from alice_nnunet.model.pretraining.method import Drawing, PretrainingMethod
from alice_nnunet.model.views import CropViews
from alice_nnunet.pretrain.training.state import build_state
from alice_nnunet.pretrain.training.step import train_step, views_of
from tests.helpers.pretraining import CPU, SPACING, method_config, noise, pair_batch


def small_model(method: str, *settings: str, encoder: str = "vit") -> PretrainingMethod:
    """A method with random weights, as in training."""
    return build_state(method_config(method, encoder, *settings), CPU).model.train()


def drawn(
    model: PretrainingMethod, seed: int = 0, pairs: int = 3, progress: float = 0.0
) -> tuple[CropViews, CropViews]:
    """Views of pairs of noise."""
    generator = torch.Generator().manual_seed(seed)
    return views_of(noise(seed, pairs), model, Drawing(generator, SPACING, progress=progress))


def blobs(step: int, pairs: int = 4) -> PairBatch:
    """Pairs of smooth random volumes, which have something to be found in them."""
    generator = torch.Generator().manual_seed(step)
    coarse = torch.rand(2 * pairs, 1, 5, 5, 5, generator=generator)
    crops = F.interpolate(coarse, size=(32, 32, 32), mode="trilinear", align_corners=True)
    return pair_batch(crops[:pairs], crops[pairs:])


@dataclass
class ShortRun:
    """The mean loss of the first and the last sixth of a short run, and V's effective rank."""

    first: float
    last: float
    rank: float


def short_run(method: str, *settings: str, steps: int = 60) -> ShortRun:
    """Train a method on two batches of blobs."""
    config = method_config(method, "vit", f"iterations={steps}", "lr=1e-3", "lr_pairs=4", *settings)
    state = build_state(config, CPU)

    losses = []
    for step in range(steps):
        result = train_step(state, blobs(step % 2), config, SPACING)
        losses.append(result.loss.item())
    sixth = steps // 6
    return ShortRun(
        sum(losses[:sixth]) / sixth,
        sum(losses[-sixth:]) / sixth,
        effective_rank(result.second_moments["V"]).item(),
    )


def normed_layers(vectors: torch.Tensor, head: torch.nn.Sequential, normed: int) -> torch.Tensor:
    """An MLP written out, of which the first `normed` layers have batch norm; ReLU between layers.

    Args:
        vectors: (M, C).
        head: its linear layers are taken. Norms have the weights that they start with.
        normed: number of layers.
    """
    layers = [layer for layer in head if isinstance(layer, torch.nn.Linear)]
    for number, layer in enumerate(layers):
        vectors = vectors @ layer.weight.T
        if layer.bias is not None:
            vectors = vectors + layer.bias
        if number < normed:
            centered = vectors - vectors.mean(0)
            vectors = centered / (centered.square().mean(0) + 1e-5).sqrt()
        if number < len(layers) - 1:
            vectors = vectors.clamp(min=0)
    return vectors


def widths(head: torch.nn.Sequential) -> list[int]:
    """What the linear layers of an MLP give."""
    return [layer.out_features for layer in head if isinstance(layer, torch.nn.Linear)]


def follows(model: PretrainingMethod, target: torch.nn.Module, source: torch.nn.Module) -> None:
    """Assert that a target moves by the formula of a moving average, and has no gradient."""
    before = [p.clone() for p in target.parameters()]
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1.0)

    query, key = drawn(model)
    output = model(query, key)
    output.loss.backward()
    assert all(p.grad is None for p in target.parameters())

    model.after_step(0.9, output.running)
    for old, new, online in zip(before, target.parameters(), source.parameters()):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * online)
