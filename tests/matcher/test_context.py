import numpy as np
import pytest
import scipy.linalg
import torch
from scipy import ndimage

from alice_nnunet.matcher.context import (
    COARSE,
    FINE,
    RIDGE,
    SCALES,
    ContextNet,
    Discriminant,
    contexts,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(8, 10, 12), (7, 9, 5), (1, 2, 3)])
def test_contexts_are_means_of_boxes_around_a_node(size):
    """Against scipy's box filter on the means of 2 x 2 x 2 voxels, both going on at the edge."""
    image = torch.rand(2, 1, *size, generator=generator())
    found = contexts(image)
    assert found.shape == (2, 81, *(-(-n // 2) for n in size))
    for picture, features in zip(image[:, 0].numpy(), found.numpy()):
        even = [np.arange(0, n, 2) for n in size]
        counts = np.add.reduceat(
            np.add.reduceat(np.add.reduceat(np.ones(size), even[0], 0), even[1], 1), even[2], 2
        )
        nodes = (
            np.add.reduceat(
                np.add.reduceat(np.add.reduceat(picture, even[0], 0), even[1], 1), even[2], 2
            )
            / counts
        )
        nodes, margin = np.pad(nodes, 12, mode="edge"), 12
        row = 0
        for edge, reach in ((s.edge, s.reach) for s in SCALES):
            means = ndimage.uniform_filter(nodes, edge, mode="nearest")
            for shift in np.ndindex(3, 3, 3):
                start = margin + (np.array(shift) - 1) * reach
                expected = means[tuple(slice(a, a + n) for a, n in zip(start, features.shape[1:]))]
                assert np.allclose(features[row], expected, atol=1e-5)
                row += 1


def points(number: int, seed: int, features: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """The same points twice: some features tell them apart, some are noise, and they are mixed."""
    rng = np.random.default_rng(seed)
    signal, noise = (
        rng.normal(size=(number, features)) * np.linspace(2, 0, features),
        np.linspace(0.3, 1, features),
    )
    mixed = np.random.default_rng(99).normal(size=(features, features))
    return tuple((signal + rng.normal(size=signal.shape) * noise) @ mixed + 5 for _ in range(2))


def test_the_map_is_fishers_discriminant():
    """Against scipy's generalised eigenvectors: the same directions in the same order."""
    first, second = points(500, 0)
    discriminant = Discriminant(6, 3)
    for a, b in zip(np.split(first, 5), np.split(second, 5)):
        discriminant.observe(torch.from_numpy(a), torch.from_numpy(b))
    both = np.concatenate([first, second])
    within = (first - second).T @ (first - second) / len(both)
    within += RIDGE * np.trace(within) / 6 * np.eye(6)
    _, vectors = scipy.linalg.eigh(np.cov(both.T, bias=True), within)
    for found, expected in zip(discriminant.weight.numpy(), vectors.T[::-1]):
        assert abs(found @ expected) / np.linalg.norm(found) / np.linalg.norm(
            expected
        ) == pytest.approx(1, abs=1e-4)
        assert found @ within @ found == pytest.approx(1, rel=1e-3)  # noise counts the same in each
    assert np.allclose(discriminant.mean.numpy(), both.mean(0), atol=1e-4)


def test_a_point_is_found_again_in_new_data_better_than_without_learning():
    discriminant, (first, second) = Discriminant(6, 3), points(200, 1)

    def share(f):
        return ((f(first) @ f(second).T).argmax(1) == np.arange(200)).mean()

    def mapped(x):
        return discriminant(torch.from_numpy(x).float()).numpy()

    before = share(mapped)
    discriminant.observe(*(torch.from_numpy(p) for p in points(1000, 2)))
    assert share(mapped) > before + 0.1


def test_maps_of_vectors_and_lists_of_points_are_the_same():
    discriminant = Discriminant(6, 3)
    discriminant.observe(*(torch.from_numpy(p) for p in points(100, 3)))
    x = torch.randn(2, 6, 3, 4, 5, generator=generator())
    mapped = discriminant(x)
    assert mapped.shape == (2, 3, 3, 4, 5) and torch.allclose(
        mapped.norm(dim=1), torch.ones(2, 3, 4, 5)
    )
    assert torch.allclose(mapped.flatten(2)[1].T, discriminant(x.flatten(2)[1].T), atol=1e-6)


@pytest.mark.parametrize("number", [0, 1, 5])
def test_too_few_points_change_nothing_yet(number):
    discriminant = Discriminant(6, 3)
    discriminant.observe(*(torch.from_numpy(p[:number]) for p in points(10, 0)))
    assert torch.equal(discriminant.weight, torch.eye(6)[:3]) and discriminant.count == 2 * number


def test_features_that_never_vary_do_no_harm():
    discriminant = Discriminant(6, 3)
    discriminant.observe(torch.ones(100, 6), torch.ones(100, 6))
    assert (
        torch.isfinite(discriminant.weight).all()
        and torch.isfinite(discriminant(torch.randn(4, 6))).all()
    )


def test_fine_vectors_know_the_near_and_coarse_ones_the_far():
    network, image = ContextNet(4), torch.rand(1, 1, 12, 40, 44, generator=generator())
    pairs = torch.rand(2, 400, 81, generator=generator(1))
    network.observe(*pairs)
    fine, coarse = network(image)
    assert fine.shape == coarse.shape == (1, 4, 6, 20, 22)
    features = contexts(image)
    assert torch.equal(fine, network.fine(features[:, FINE])) and torch.equal(
        coarse, network.coarse(features[:, COARSE])
    )
    far = image.clone()
    far[..., -6:] = (
        1 - far[..., -6:]
    )  # 38 voxels and more from the first; the furthest box reaches 2 * (8 + 2) + 1
    near = image.clone()
    near[..., :2] = 1 - near[..., :2]
    for changed, reaches in ((far, False), (near, True)):
        moved = [
            not torch.allclose(a[..., 0], b[..., 0], atol=1e-5)
            for a, b in zip((fine, coarse), network(changed))
        ]
        assert moved == [reaches, reaches]
    middle = image.clone()
    middle[..., 17:19] = (
        1 - middle[..., 17:19]
    )  # 17 voxels from the first: in reach of the far boxes alone
    moved = [
        not torch.allclose(a[..., 0], b[..., 0], atol=1e-5)
        for a, b in zip((fine, coarse), network(middle))
    ]
    assert moved == [False, True]


def test_a_state_goes_on_where_it_was():
    whole, half = Discriminant(6, 3), Discriminant(6, 3)
    (a, b), (c, d) = (map(torch.from_numpy, points(50, seed)) for seed in (4, 5))
    for network in (whole, half):
        network.observe(a, b)
    other = Discriminant(6, 3)
    other.load_state_dict(half.state_dict())
    whole.observe(c, d)
    other.observe(c, d)
    assert all(
        torch.equal(x, y) for x, y in zip(whole.state_dict().values(), other.state_dict().values())
    )
