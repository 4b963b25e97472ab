"""Models and views of the methods of pretraining, and crops that can be learned."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from alice_nnunet.data.pairs import PairBatch
from alice_nnunet.demo.datasets import canonical, volumes
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


@functools.cache
def ct_volumes() -> list[torch.Tensor]:
    """Three real scans at 3 mm, (D, H, W), windowed to 0 to 1."""
    scans = []
    for name in ("lidc0001", "acrinflt001_abd", "ts_example"):
        hu, _ = canonical(volumes()[name])
        window = np.clip((hu + 125) / 380, 0, 1)
        scans.append(torch.from_numpy(window.astype(np.float32)))
    return scans


def ct_crops(step: int, pairs: int = 4) -> PairBatch:
    """Pairs of crops of real CT, at random places; other ones in every step."""
    generator = torch.Generator().manual_seed(step)
    crops = []
    for number in range(2 * pairs):
        scan = ct_volumes()[number % 3]
        starts = [int(torch.randint(s - 31, (), generator=generator)) for s in scan.shape]
        crops.append(scan[tuple(slice(start, start + 32) for start in starts)])
    stacked = torch.stack(crops)[:, None]
    return pair_batch(stacked[:pairs], stacked[pairs:])


@dataclass
class ShortRun:
    """The mean loss of each sixth of a short run, and V's effective rank at its end."""

    sixths: list[float]
    rank: float

    @property
    def first(self) -> float:
        return self.sixths[0]

    @property
    def last(self) -> float:
        return self.sixths[-1]


def blobs_again(step: int) -> PairBatch:
    """Two batches of blobs in turn."""
    return blobs(step % 2)


def short_run(
    method: str,
    *settings: str,
    steps: int = 60,
    crops: Callable[[int], PairBatch] = blobs_again,
) -> ShortRun:
    """Train a method for some steps."""
    config = method_config(method, "vit", f"iterations={steps}", "lr=1e-3", "lr_pairs=4", *settings)
    state = build_state(config, CPU)

    losses = []
    for step in range(steps):
        result = train_step(state, crops(step), config, SPACING)
        losses.append(result.loss.item())
    sixths = np.array_split(losses, 6)
    return ShortRun(
        [float(sixth.mean()) for sixth in sixths],
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
