"""Vectors that tell where in a body they are, for tests: smooth random functions of millimetres."""

import numpy as np

from alice_nnunet.matcher.embedding import BLOCK, Embedding, pack

CHANNELS = 64  # of a half
REACH = 25.0  # mm over which vectors stay alike


def field(positions: np.ndarray, seed: int = 0) -> np.ndarray:
    """Random Fourier features (2 CHANNELS, ...) of positions (..., 3) mm.

    Each half has the length sqrt(1/2).
    """
    rng = np.random.default_rng(seed)
    halves = [
        np.cos(
            positions @ (rng.normal(size=(3, CHANNELS)) / REACH)
            + rng.uniform(0, 2 * np.pi, CHANNELS)
        )
        for _ in range(2)
    ]
    halves = [half / np.linalg.norm(half, axis=-1, keepdims=True) / 2**0.5 for half in halves]
    return np.moveaxis(np.concatenate(halves, -1), -1, 0)


def field_embedding(size, origin, step, body: np.ndarray) -> Embedding:
    """An embedding of size nodes whose vector at p (mm of the volume) is the field at p + body."""
    axes = [o + np.arange(n) * s for n, o, s in zip(size, origin, step)]
    positions = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    return pack(field(positions + body), tuple(map(float, origin)), tuple(map(float, step)))


def nodes_of(embedding) -> np.ndarray:
    """All nodes, (N, 3)."""
    return np.stack(
        np.meshgrid(*(np.arange(n * BLOCK) for n in embedding.grid), indexing="ij"), -1
    ).reshape(-1, 3)


def vector(embedding, node) -> np.ndarray:
    return embedding.vectors(embedding.position(np.array(node))[None])[0]
