"""How well features of one person find the same organ in another: balanced nearest-neighbour retrieval, no training.

From every organ that both people have, the same number of points is drawn in each. A crop is centred on each point and
encoded whole; the feature is the mean of the tokens around the centre. A point is right if its nearest neighbour
(cosine) among the points of the other person lies in the same organ. Both directions are averaged; chance is one over
the number of organs.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from alice_nnunet.geometry import Triple, crop_around


def labeled_volume(image: Path, labels: Path, plans: dict) -> tuple[np.ndarray, np.ndarray]:
    """A labeled person as the plans preprocess it, by nnU-Net's own class: image (1, Z, Y, X) and labels (Z, Y, X)."""
    manager = PlansManager(plans)
    dataset_json = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{str(i): i for i in range(1, 14)}},
        "file_ending": ".nii.gz",
    }
    data, seg, _ = DefaultPreprocessor(verbose=False).run_case(
        [str(image)], str(labels), manager, manager.get_configuration("3d_fullres"), dataset_json
    )
    return data, seg[0]


def draw_points(
    labels: np.ndarray, organs: list[int], number: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """number voxels of each organ, with repetition where the organ is smaller."""
    return [
        rng.permutation(found)[np.arange(number) % len(found)]
        for found in (np.argwhere(labels == o) for o in organs)
    ]


@torch.no_grad()
def features_at(encoder, image: np.ndarray, points: np.ndarray, size: Triple) -> torch.Tensor:
    """Normalised mean of the 2 x 2 x 2 tokens around the centre of the crop at each point. (P, 3) -> (P, E)."""
    crops = torch.from_numpy(np.stack([crop_around(image, tuple(p), size) for p in points]))
    maps = torch.cat([encoder.features(part)[-1] for part in crops.split(32)])  # (P, E, gz, gy, gx)
    middle = tuple(slice(max(0, n // 2 - 1), n // 2 + 1) for n in maps.shape[2:])
    return F.normalize(maps[(slice(None), slice(None), *middle)].mean((2, 3, 4)), dim=-1)


def intensities_at(image: np.ndarray, points: np.ndarray, size: Triple) -> torch.Tensor:
    """The baseline without any learning: the voxels of the crop themselves, pooled to the size of an encoder's feature."""
    crops = torch.from_numpy(np.stack([crop_around(image, tuple(p), size) for p in points]))
    pooled = F.adaptive_avg_pool3d(crops, (4, 7, 7)).flatten(1)
    return F.normalize(pooled - pooled.mean(1, keepdim=True), dim=-1)


def retrieval(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    """Share of points whose nearest neighbour in the other person is of the same organ, both directions averaged.

    first, second: for each organ (P, E), the same organs in the same order, the same P.
    """
    organ = torch.arange(len(first)).repeat_interleave(len(first[0]))
    similarity = torch.cat(first) @ torch.cat(second).T
    right = [
        (organ[s.argmax(1)] == organ).float().mean().item() for s in (similarity, similarity.T)
    ]
    return sum(right) / 2


def organ_retrieval(
    encoder,
    people: list[tuple[np.ndarray, np.ndarray]],
    size: Triple,
    number: int = 40,
    seed: int = 0,
) -> dict:
    """Retrieval between two labeled people. Returns {"encoder", "intensities", "chance", "organs"}; encoder None for the baselines."""
    organs = sorted(set(np.unique(people[0][1])) & set(np.unique(people[1][1])) - {-1, 0})
    rng = np.random.default_rng(seed)
    points = [draw_points(labels, organs, number, rng) for _, labels in people]
    at = lambda f: retrieval(
        *([f(image, p) for p in drawn] for (image, _), drawn in zip(people, points))
    )
    return {
        "encoder": at(lambda i, p: features_at(encoder, i, p, size)) if encoder else None,
        "intensities": at(lambda i, p: intensities_at(i, p, size)),
        "chance": 1 / len(organs),
        "organs": len(organs),
    }
