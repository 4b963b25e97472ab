import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.matcher.fields import field, field_embedding

from alice_nnunet.data.body import find_body
from alice_nnunet.data.volumes import Volume
from alice_nnunet.matcher.embedding import (
    BLOCK,
    NEIGHBOURS,
    SEARCHED,
    UNSEEN,
    embed_volume,
    pack,
    to_grid,
)
from alice_nnunet.matcher.network import AnatomyNet

CPU = torch.device("cpu")
ORIGIN, STEP = (10.0, -4.0, 7.0), (6.0, 5.0, 4.0)


def nodes_of(embedding) -> np.ndarray:
    """All nodes, (N, 3)."""
    return np.stack(
        np.meshgrid(*(np.arange(n * BLOCK) for n in embedding.grid), indexing="ij"), -1
    ).reshape(-1, 3)


def vector(embedding, node) -> np.ndarray:
    return embedding.vectors(embedding.position(np.array(node))[None])[0]


def around(embedding, place: np.ndarray) -> np.ndarray:
    """Millimetres of the places that find looks at, (53, 3)."""
    return place + NEIGHBOURS * BLOCK * np.array(embedding.step)


def alike_everywhere(embedding, wanted: np.ndarray) -> np.ndarray:
    """Mean similarity of the surroundings of all nodes, (Z, Y, X); -1 where a node is not in the body. What the volume does
    not show above and below counts for UNSEEN."""
    size = np.array(embedding.grid) * BLOCK
    every = np.stack([vector(embedding, node) for node in nodes_of(embedding)]).reshape(*size, -1)
    beyond, total, seen = (
        np.pad(every, [(2 * BLOCK, 2 * BLOCK)] * 3 + [(0, 0)]),
        np.zeros(size),
        np.zeros(size[0]),
    )
    for (z, y, x), one in zip((NEIGHBOURS + 2) * BLOCK, wanted):
        total += beyond[z : z + size[0], y : y + size[1], x : x + size[2]] @ one
        seen += beyond[z : z + size[0]].any((1, 2, 3)) * one.any()
    asked = wanted.any(1).sum()
    return np.where(
        every.any(3), total / ((seen + UNSEEN * asked) / (1 + UNSEEN))[:, None, None], -1
    )


@pytest.mark.parametrize("size", [(6, 9, 12), (7, 8, 10), (1, 2, 3)])
def test_packed_vectors_come_back_within_the_rounding(size):
    vectors = np.random.default_rng(0).normal(size=(8, *size)).astype(np.float32)
    embedding = pack(vectors, ORIGIN, STEP)
    assert (
        embedding.blocks.dtype == embedding.middles.dtype == np.int8
        and np.abs(embedding.blocks.astype(int)).max() == 127
    )
    assert embedding.grid == tuple(-(-n // BLOCK) for n in size)
    for node in nodes_of(embedding):
        expected = vectors[(slice(None), *node)] if (node < size).all() else 0
        assert np.abs(vector(embedding, node) - expected).max() <= embedding.scale * 0.501


def test_middles_are_the_vectors_in_the_middle_of_each_block():
    embedding = pack(
        np.random.default_rng(0).normal(size=(8, 6, 9, 12)).astype(np.float32), ORIGIN, STEP
    )
    middles = [node for node in nodes_of(embedding) if (node % BLOCK == BLOCK // 2).all()]
    assert len(middles) == len(embedding.middles) == 2 * 3 * 4
    for node, middle in zip(middles, embedding.middles):
        assert np.array_equal(vector(embedding, node), middle.astype(np.float32) * embedding.scale)


@pytest.mark.parametrize(
    "size", [(18, 21, 24), (5, 4, 7)], ids=["many blocks", "fewer blocks than are searched"]
)
def test_found_is_the_most_similar_of_all_nodes(size):
    embedding, rng = field_embedding(size, ORIGIN, STEP, np.zeros(3)), np.random.default_rng(1)
    assert (len(embedding.middles) > 3 * SEARCHED) == (size[0] == 18)
    for place in rng.uniform(ORIGIN, np.array(ORIGIN) + (np.array(size) - 1) * STEP, (4, 3)):
        wanted = field(around(embedding, place)).T.astype(np.float32)
        wanted[rng.permutation(53)[:9]] = 0
        alike = alike_everywhere(embedding, wanted)
        node, similarity = embedding.find(wanted)
        assert alike[tuple(node)] == pytest.approx(alike.max(), abs=1e-5)
        assert similarity == pytest.approx(min(1, alike.max()), abs=1e-5)


def test_the_similarity_is_that_of_the_vectors_before_rounding():
    embedding, rng = (
        field_embedding((24, 27, 30), ORIGIN, STEP, np.zeros(3)),
        np.random.default_rng(1),
    )
    inner = (2 * BLOCK + 1) * np.array(STEP)
    for place in rng.uniform(
        ORIGIN + inner, np.array(ORIGIN) + (23, 26, 29) * np.array(STEP) - inner, (20, 3)
    ):
        wanted = field(around(embedding, place)).T
        node, similarity = embedding.find(wanted.astype(np.float32))
        found = field(around(embedding, embedding.position(node))).T
        assert similarity == pytest.approx((wanted * found).sum(1).mean(), abs=0.01)
        assert (np.abs(embedding.position(node) - place) < 0.75 * np.array(STEP)).all()


def test_nothing_to_look_for_is_found_nowhere():
    embedding = field_embedding((6, 6, 6), ORIGIN, STEP, np.zeros(3))
    assert embedding.find(np.zeros((53, 128), np.float32))[1] == 0


def test_nothing_is_more_alike_than_a_node_with_itself():
    embedding = field_embedding((12, 12, 12), ORIGIN, STEP, np.zeros(3))
    for node in nodes_of(embedding)[::7]:
        found, similarity = embedding.find(
            embedding.vectors(around(embedding, embedding.position(node)))
        )
        assert found.tolist() == node.tolist() and 0.99 < similarity <= 1


def test_there_is_no_vector_outside_the_grid():
    embedding = pack(np.ones((2, 6, 9, 12), np.float32), ORIGIN, STEP)
    places = (
        np.array([(-1, 0, 0), (0, 0, 0), (5, 8, 11), (6, 8, 11), (5, 9, 11), (5, 8, 12)]) * STEP
        + ORIGIN
    )
    assert embedding.vectors(places).any(1).tolist() == [False, True, True, False, False, False]


def test_nearest_undoes_position_and_stays_on_the_grid():
    embedding = pack(np.ones((2, 6, 9, 12), np.float32), ORIGIN, STEP)
    for node in nodes_of(embedding):
        assert (
            embedding.nearest(
                embedding.position(node) + 0.49 * np.array(STEP) * (-1, 1, -1)
            ).tolist()
            == node.tolist()
        )
    assert embedding.position(np.array([1, 2, 3])).tolist() == [16, 6, 19]
    assert embedding.nearest(np.array([-1000, 1000, 7])).tolist() == [0, 8, 0]


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
    found, exact = to_grid(image, spacing, target)
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
    assert to_grid(image, (1.0, 1.0, 1.0), 4.0)[0].std() < 0.2


@pytest.fixture(scope="module")
def network() -> AnatomyNet:
    torch.manual_seed(0)
    return AnatomyNet((4, 4, 8, 8), 6, (3, 3, 3)).eval()


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
    grid = to_grid(torch.from_numpy(volume.image), volume.spacing, VOXEL)
    assert embedding.step == pytest.approx([2 * s for s in grid[1]], rel=1e-5)
    vectors = {tuple(node): vector(embedding, node) for node in nodes_of(embedding)}
    whole = [i for i in np.ndindex(*(-(-n // 2) for n in grid[0].shape[1:]))]
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
    image = to_grid(torch.from_numpy(volume.image), volume.spacing, VOXEL)[0]
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
