"""How well do features of one person find the same organ in another? Used by collapse.py.

Balanced nearest-neighbour retrieval without training. From every organ that both people have, the
same number of points is drawn in each. A crop is centred on each point and encoded whole; the
feature is the mean of the tokens around the centre. A point is right if its nearest neighbour
(cosine) among the points of the other person lies in the same organ. Both directions are averaged.
Measured against the voxels of the crop as feature, and against chance: one over the number of
organs.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from alice_nnunet.geometry import Triple, crop_around

LABELS = 13  # of the labeled people
CROPS_AT_ONCE = 32  # that the encoder takes
POOLED: Triple = (4, 7, 7)  # size of a crop as feature: as many numbers as an encoder gives


def labeled_volume(
    image: Path, labels: Path | None, plans: dict
) -> tuple[np.ndarray, np.ndarray | None]:
    """A person as the plans preprocess it, by nnU-Net's own class.

    Returns:
        image: (1, Z, Y, X) float32.
        labels: (Z, Y, X); None without a file.
    """
    manager = PlansManager(plans)
    dataset_json = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{str(i): i for i in range(1, LABELS + 1)}},
        "file_ending": ".nii.gz",
    }

    data, segmentation, _ = DefaultPreprocessor(verbose=False).run_case(
        [str(image)],
        str(labels) if labels else None,
        manager,
        manager.get_configuration("3d_fullres"),
        dataset_json,
    )
    return data.astype(np.float32), None if segmentation is None else segmentation[0]


def draw_points(
    labels: np.ndarray, organs: list[int], number: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Random voxels of each organ, (number, 3) each; with repetition where the organ is smaller."""
    points = []
    for organ in organs:
        voxels = rng.permutation(np.argwhere(labels == organ))
        points.append(voxels[np.arange(number) % len(voxels)])
    return points


def crops_at(image: np.ndarray, points: np.ndarray, size: Triple) -> torch.Tensor:
    """The crop around each point. (1, Z, Y, X), (P, 3) voxels -> (P, 1, *size)."""
    return torch.from_numpy(np.stack([crop_around(image, tuple(p), size) for p in points]))


@torch.no_grad()
def features_at(encoder, image: np.ndarray, points: np.ndarray, size: Triple) -> torch.Tensor:
    """Normalised mean of the 2 x 2 x 2 tokens around the centre of each crop, (P, E)."""
    crops = crops_at(image, points, size)
    maps = [encoder.features(part)[-1] for part in crops.split(CROPS_AT_ONCE)]
    maps = torch.cat(maps)  # (P, E, gz, gy, gx)
    middle = tuple(slice(max(0, n // 2 - 1), n // 2 + 1) for n in maps.shape[2:])
    return F.normalize(maps[(slice(None), slice(None), *middle)].mean((2, 3, 4)), dim=-1)


def intensities_at(image: np.ndarray, points: np.ndarray, size: Triple) -> torch.Tensor:
    """The feature without any learning: the voxels of the crop, pooled and normalised, (P, E)."""
    pooled = F.adaptive_avg_pool3d(crops_at(image, points, size), POOLED).flatten(1)
    return F.normalize(pooled - pooled.mean(1, keepdim=True), dim=-1)


def retrieval(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    """Share of points whose nearest neighbour in the other person is of the same organ.

    Both directions are averaged.

    Args:
        first: features (P, E) of each organ in one person.
        second: the same of the other person; organs in the same order, the same P.
    """
    organ = torch.arange(len(first)).repeat_interleave(len(first[0]))
    similarity = torch.cat(first) @ torch.cat(second).T
    forth = (organ[similarity.argmax(1)] == organ).float().mean().item()
    back = (organ[similarity.T.argmax(1)] == organ).float().mean().item()
    return (forth + back) / 2


def organ_retrieval(
    encoder,
    people: list[tuple[np.ndarray, np.ndarray]],
    size: Triple,
    number: int = 40,
    seed: int = 0,
) -> dict:
    """Retrieval between two labeled people.

    Args:
        encoder: the pretrained encoder, or None for the baselines alone.
        people: image and labels of both, as labeled_volume gives them.
        size: of a crop in voxels.
        number: points of each organ in each person.
        seed: of the points.

    Returns:
        "encoder" (None without one), "intensities" and "chance", shares; "organs", their number.
    """
    (first_image, first_labels), (second_image, second_labels) = people
    organs = sorted(set(np.unique(first_labels)) & set(np.unique(second_labels)) - {-1, 0})
    rng = np.random.default_rng(seed)
    first_points = draw_points(first_labels, organs, number, rng)
    second_points = draw_points(second_labels, organs, number, rng)

    def retrieval_with(feature: Callable) -> float:
        first = [feature(first_image, points) for points in first_points]
        second = [feature(second_image, points) for points in second_points]
        return retrieval(first, second)

    def encoded(image: np.ndarray, points: np.ndarray) -> torch.Tensor:
        return features_at(encoder, image, points, size)

    def intensities(image: np.ndarray, points: np.ndarray) -> torch.Tensor:
        return intensities_at(image, points, size)

    return {
        "encoder": retrieval_with(encoded) if encoder else None,
        "intensities": retrieval_with(intensities),
        "chance": 1 / len(organs),
        "organs": len(organs),
    }
