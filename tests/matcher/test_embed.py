"""How the embedding of a volume is made, on a small real CT and on ramps of millimetres."""

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from alice_nnunet.data.body import find_body
from alice_nnunet.data.volumes import Volume
from alice_nnunet.matcher.embed import embed_volume, resample
from alice_nnunet.matcher.embedding import BLOCK
from alice_nnunet.matcher.network import SamNet
from tests.matcher.fields import nodes_of, vector

CPU = torch.device("cpu")


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize(
    "spacing, target",
    [
        ((3.0, 3.0, 3.0), 3.0),
        ((1.0, 0.7, 0.9), 3.0),
        ((5.0, 0.8, 0.8), 2.0),
        ((4.0, 6.0, 5.0), 2.0),
    ],
    ids=["same", "down", "both", "up"],
)
def test_a_ramp_of_millimetres_stays_one(spacing, target, axis):
    size = (23, 61, 47)
    ramp = (torch.arange(size[axis]) + 0.5) * spacing[axis]
    image = ramp.view([-1 if a == axis else 1 for a in range(3)]).expand(1, *size)
    found, exact = resample(image, spacing, target)
    assert found.shape[1:] == tuple(round(n * s / target) for n, s in zip(size, spacing))
    assert all(
        n * s == pytest.approx(m * e) for n, s, m, e in zip(size, spacing, found.shape[1:], exact)
    )
    places = (torch.arange(found.shape[axis + 1]) + 0.5) * exact[axis]
    inner = (places > 2 * spacing[axis] + target) & (
        places < size[axis] * spacing[axis] - 2 * spacing[axis] - target
    )
    line = found[0].movedim(axis, 0)[:, 0, 0]
    assert inner.sum() > 3 and torch.allclose(line[inner], places[inner], atol=1e-3)
    assert torch.allclose(found[0].movedim(axis, 0), line[:, None, None], rtol=1e-4)


def test_fine_detail_is_averaged():
    image = torch.randn(1, 40, 40, 40, generator=torch.Generator().manual_seed(0))
    assert resample(image, (1.0, 1.0, 1.0), 4.0)[0].std() < 0.2


@pytest.fixture(scope="module")
def network() -> SamNet:
    torch.manual_seed(0)
    return SamNet((4, 4, 8, 8), 6, (3, 3, 3)).eval()


@pytest.fixture(scope="module")
def volume(real_ct) -> Volume:
    """The small real CT as preprocessing leaves it."""
    image = nibabel.as_closest_canonical(real_ct)
    hu = np.asarray(image.dataobj).astype(np.float32).transpose(2, 1, 0)
    spacing = tuple(float(s) for s in image.header.get_zooms()[::-1])
    return Volume(
        "ct", (hu.clip(-125, 255)[None] + 125) / 380, spacing, find_body(hu > -500, spacing)
    )


VOXEL = 10.0


def in_body(volume: Volume, place: np.ndarray) -> bool:
    voxel = np.minimum((place / volume.spacing).astype(int), np.array(volume.body.size) - 1)
    return volume.body.contains(tuple(voxel))


def test_the_embedding_of_a_ct_is_cut_to_its_body(network, volume):
    embedding = embed_volume(network, volume, VOXEL, 1.0, CPU)
    grid = resample(torch.from_numpy(volume.image), volume.spacing, VOXEL)
    assert embedding.step == pytest.approx([2 * s for s in grid[1]], rel=1e-5)
    vectors = {tuple(node): vector(embedding, node) for node in nodes_of(embedding)}
    whole = list(np.ndindex(*(-(-n // 2) for n in grid[0].shape[1:])))
    first = np.rint(np.array(embedding.origin) / embedding.step - 0.5).astype(int)
    assert np.allclose(embedding.position(-first), 0.5 * np.array(embedding.step), atol=1e-3)
    inside = {i for i in whole if in_body(volume, (np.array(i) + 0.5) * embedding.step)}
    assert {tuple(np.array(node) + first) for node, v in vectors.items() if v.any()} == inside
    used = np.array(sorted(inside))
    assert first.tolist() == used.min(0).tolist()
    assert embedding.grid == tuple(-(-n // BLOCK) for n in used.max(0) - used.min(0) + 1)
    assert len(inside) < 0.75 * len(whole)
    lengths = [np.linalg.norm(part) for v in vectors.values() if v.any() for part in np.split(v, 2)]
    assert lengths == pytest.approx([0.5**0.5] * len(lengths), abs=0.02)


@torch.no_grad()
def test_vectors_are_the_networks_own(network, volume):
    """Padded by hand to whole coarse voxels, at each node of the fine map."""
    embedding = embed_volume(network, volume, VOXEL, 1.0, CPU)
    image = resample(torch.from_numpy(volume.image), volume.spacing, VOXEL)[0]
    padded = torch.zeros(1, 1, *(-(-n // u) * u for n, u in zip(image.shape[1:], (4, 16, 16))))
    padded[0, :, : image.shape[1], : image.shape[2], : image.shape[3]] = image
    fine, coarse = network(padded)
    coarse = F.normalize(
        F.interpolate(coarse, fine.shape[2:], mode="trilinear", align_corners=False), dim=1
    )
    first = np.rint(np.array(embedding.origin) / embedding.step - 0.5).astype(int)
    for node in nodes_of(embedding):
        found, (z, y, x) = vector(embedding, node), node + first
        if found.any():
            expected = torch.cat([fine[0, :, z, y, x], coarse[0, :, z, y, x]]) / 2**0.5
            assert np.abs(found - expected.numpy()).max() <= embedding.scale * 0.51


@pytest.mark.parametrize("step", [25.0, 40.0, 60.0])
def test_a_coarser_step_has_fewer_nodes_over_the_same_body(network, volume, step):
    own, coarser = (embed_volume(network, volume, VOXEL, s, CPU) for s in (1.0, step))
    assert all(s == pytest.approx(step, rel=0.15) for s in coarser.step)
    for embedding in (own, coarser):
        places = np.array(
            [
                embedding.position(node)
                for node in nodes_of(embedding)
                if vector(embedding, node).any()
            ]
        )
        low, high = np.array(volume.body.box) * volume.spacing
        reach = np.array(embedding.step) * 1.5 + np.array(volume.body.cell) * volume.spacing
        assert (np.abs(places.min(0) - low) < reach).all() and (
            np.abs(places.max(0) - high) < reach
        ).all()
        assert all(in_body(volume, place) for place in places)
    lengths = [
        np.linalg.norm(part)
        for node in nodes_of(coarser)
        if (v := vector(coarser, node)).any()
        for part in np.split(v, 2)
    ]
    assert lengths == pytest.approx([0.5**0.5] * len(lengths), abs=0.02)


@pytest.mark.parametrize("size", [(19, 37, 50), (4, 16, 16), (5, 9, 33)])
def test_any_size_of_a_volume(network, size):
    inside = np.zeros(size, bool)
    inside[:, 2:-2, 2:-2] = True
    volume = Volume(
        "any",
        np.random.default_rng(0).random((2, *size), np.float32),
        (5.0, 3.0, 4.0),
        find_body(inside, (5.0, 3.0, 4.0)),
    )
    embedding = embed_volume(network, volume, 3.0, 1.0, CPU)
    places = [
        embedding.position(node) for node in nodes_of(embedding) if vector(embedding, node).any()
    ]
    assert places and all(in_body(volume, place) for place in places)
