"""A small pretraining, and pairs of noise, for tests of its parts."""

import numpy as np
import torch

from alice_nnunet.data.pairs import MATCHED, PairBatch
from alice_nnunet.pretrain.training.config import (
    PretrainConfig,
    known_settings,
    make_config,
    read_settings,
)
from alice_nnunet.pretrain.training.state import State

CPU = torch.device("cpu")
SPACING = (3.0, 3.0, 3.0)
SMALL = (
    "iterations=10",
    "width=24",
    "depth=2",
    "heads=2",
    "decoder_width=24",
    "decoder_depth=1",
    "decoder_heads=2",
    "head_hidden=32",
    "crop_size=32,32,32",
)
# Of any method and encoder, as far as they have these settings.
SMALL_METHOD = {
    "iterations": "10",
    "batch_size": "4",
    "decoder_width": "24",
    "decoder_depth": "1",
    "decoder_heads": "2",
    "head_hidden": "32",
    "head_bottleneck": "16",
    "channels": "16",
    "prototypes": "48",
    "feature_depth": "1",
    "projector_depth": "1",
    "matcher": "body",
}
SMALL_ENCODERS = {
    "vit": {"crop_size": "32,32,32", "width": "24", "depth": "2", "heads": "2"},
    "swin": {"crop_size": "32,32,32", "embed_width": "8"},
    "nnformer": {"crop_size": "32,32,32", "embed_width": "8"},
}
# The objective of the paper, instead of the default.
PAPER: dict[str, object] = {
    "dv_by": "crop",
    "weight_st": 1.0,
    "weight_an": 0.0,
    "target_flips": True,
    "temperature": 0.2,
}
# Steps that move the centers and no weight, to compare gradients of different orders of additions:
# AdamW turns the last bits of small gradients, which differ, into whole steps of its rate.
FROZEN = ("lr=1e-12", "warmup_iterations=0", "clip_grad=1000000.0")


def small_config(*more: str) -> PretrainConfig:
    """A tiny ViT on crops of 32 x 32 x 32 voxels, with the paper's objective."""
    paper = [f"{name}={value}" for name, value in PAPER.items()]
    return make_config("Dataset001_X", read_settings("vit", "tiny", [*SMALL, *paper, *more]))


def method_config(method: str, encoder: str, *more: str) -> PretrainConfig:
    """A small run of any method with any encoder, on crops of 32 x 32 x 32 voxels."""
    known = known_settings(encoder, "tiny", method)
    names = {name for group in known.values() for name in group}
    small = {**SMALL_METHOD, **SMALL_ENCODERS[encoder]}
    assignments = [f"{name}={value}" for name, value in small.items() if name in names]
    settings = read_settings(encoder, "tiny", [*assignments, *more], None, method)
    return make_config("Dataset001_X", settings)


def pair_batch(query: torch.Tensor, key: torch.Tensor) -> PairBatch:
    """These crops, (B, C, D, H, W), as pairs of the cases q0 with k0, q1 with k1, ..."""
    pairs = len(query)
    return PairBatch(
        query,
        key,
        query_case=[f"q{number}" for number in range(pairs)],
        key_case=[f"k{number}" for number in range(pairs)],
        score=torch.ones(pairs, dtype=torch.float64),
        rejected=torch.arange(pairs),
        kind=[MATCHED] * pairs,
    )


def noise(seed: int = 0, pairs: int = 2) -> PairBatch:
    """Pairs of noise, on which small_config can be trained."""
    rng = np.random.default_rng(seed)
    query, key = torch.from_numpy(rng.random((2, pairs, 1, 32, 32, 32), np.float32))
    return pair_batch(query, key)


def same_weights(ours: State, theirs: State) -> bool:
    """Whether all weights and buffers of two runs are the same bits."""
    others = theirs.model.state_dict()
    return all(torch.equal(value, others[name]) for name, value in ours.model.state_dict().items())


def gradients_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def assert_same_gradients(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], multiple: int = 100
) -> None:
    """Gradients of the same weights, which differ by the order of additions alone.

    An element is a sum of thousands of terms, some as large as the largest elements: its error is
    a multiple of the fp32 epsilon times these, however small the element itself.
    """
    largest = max(gradient.abs().max() for gradient in theirs.values())
    tolerance = multiple * torch.finfo(torch.float32).eps * largest

    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        difference = (ours[name] - gradient).abs().max()
        assert difference <= tolerance, f"{name}: {difference:.1e}, tolerance {tolerance:.1e}"


def spoiled() -> PairBatch:
    """A batch whose loss is no number."""
    batch = noise()
    batch.query[1] = float("nan")
    return batch
