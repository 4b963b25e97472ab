"""Does the encoder know organs? A probe on labeled people who are not trained on.

The people lie in a folder as nnU-Net's training cases do: images/CASE_0000.ENDING (one file for
each channel, or images/CASE.ENDING for a single channel) and labels/CASE.ENDING.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from alice_nnunet.datasets.raw_image import first_line, read_case
from alice_nnunet.errors import UserError
from alice_nnunet.geometry import Triple, crop_around, triple
from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.names import CONFIGURATION
from alice_nnunet.pretrain.runtime.device import autocast

POINTS = 40  # of each organ in each person
CROPS_AT_ONCE = 8  # that the encoder takes
REGULARISATION = 0.1  # of the ridge classifier, for each of its samples


@dataclass(frozen=True)
class LabeledCase:
    """The files of a labeled person: one for each channel, and the labels."""

    name: str
    images: list[Path]
    labels: Path


@dataclass(frozen=True)
class LabeledPerson:
    """A labeled person, preprocessed as the run's data.

    Attributes:
        name: Of the case.
        image: (C, Z, Y, X) float32.
        points: Of each label that is there, POINTS of its voxels (z, y, x); with repetition where
            it has fewer.
    """

    name: str
    image: np.ndarray
    points: dict[int, np.ndarray]


@dataclass(frozen=True)
class OrganProbe:
    """How well organs are told apart across people.

    Attributes:
        organs: Accuracy of a ridge classifier, trained on one person, on another.
        retrieval: Share of points whose nearest neighbour in the other person is of their organ.
        chance: One over the number of organs, of both.
    """

    organs: float
    retrieval: float
    chance: float


def labeled_cases(folder: Path, channels: int) -> list[LabeledCase]:
    """The labeled people in a folder, by name.

    Args:
        folder: With images/ and labels/.
        channels: Files of an image.

    Raises:
        UserError: There are fewer than two, or an image is missing.
    """
    cases = []
    for labels in sorted((folder / "labels").glob("[!.]*.*")):
        name, _, ending = labels.name.partition(".")
        images = [
            folder / "images" / f"{name}_{channel:04d}.{ending}" for channel in range(channels)
        ]
        without_number = folder / "images" / labels.name
        if channels == 1 and not images[0].is_file() and without_number.is_file():
            images = [without_number]

        missing = [str(image) for image in images if not image.is_file()]
        if missing:
            raise UserError(f"probe_labels: {labels} has no image {', '.join(missing)}")
        cases.append(LabeledCase(name, images, labels))

    if len(cases) < 2:
        raise UserError(
            f"probe_labels needs two labeled people or more, found {len(cases)} in "
            f"{folder / 'labels'}. Expected images/CASE_0000.nii.gz and labels/CASE.nii.gz"
        )
    return cases


def read_person(case: LabeledCase, plans: dict) -> LabeledPerson:
    """Read and preprocess a labeled person. The points are the same every time.

    Raises:
        UserError: A file cannot be used.
    """
    manager = PlansManager(plans)
    reader = manager.image_reader_writer_class()
    try:
        raw_image, properties, _ = read_case(case.images, reader)
        labels_read, _, _ = read_case([case.labels], reader)
        raw_labels = np.rint(labels_read).astype(np.int16)
        if raw_labels.shape[1:] != raw_image.shape[1:]:
            raise ValueError(f"labels {raw_labels.shape[1:]}, image {raw_image.shape[1:]} voxels")
    except Exception as error:
        raise UserError(f"probe_labels: {case.labels}: {first_line(error)}") from None

    present = [int(label) for label in np.unique(raw_labels) if label > 0]
    dataset_json = {"labels": {"background": 0, **{str(label): label for label in present}}}
    image, labels, _ = DefaultPreprocessor(verbose=False).run_case_npy(
        raw_image,
        raw_labels,
        properties,
        manager,
        manager.get_configuration(CONFIGURATION),
        dataset_json,
    )

    rng = np.random.default_rng(0)
    points = {}
    for label in np.unique(labels[labels > 0]):
        voxels = rng.permutation(np.argwhere(labels[0] == label))
        points[int(label)] = voxels[np.arange(POINTS) % len(voxels)]
    return LabeledPerson(case.name, image.astype(np.float32), points)


def read_people(folder: Path, plans: dict, channels: int) -> list[LabeledPerson]:
    """The labeled people in a folder, preprocessed, with points of the organs that all have.

    Raises:
        UserError: There are fewer than two people, or fewer than two organs that all have.
    """
    people = [read_person(case, plans) for case in labeled_cases(folder, channels)]

    organs = sorted(set.intersection(*(set(person.points) for person in people)))
    if len(organs) < 2:
        raise UserError(
            f"probe_labels needs two organs or more that all people in {folder} have, "
            f"found {len(organs)}"
        )
    return [
        LabeledPerson(person.name, person.image, {organ: person.points[organ] for organ in organs})
        for person in people
    ]


def organ_probe(
    encoder: Encoder,
    people: Sequence[LabeledPerson],
    size: Triple,
    device: torch.device,
    precision: str,
) -> OrganProbe:
    """Probe the encoder, averaged over all ordered pairs of people.

    Args:
        encoder: To probe.
        people: Of read_people().
        size: Voxels of a crop.
        device: Where the encoder is.
        precision: auto, fp32 or bf16.
    """
    organs = list(people[0].points)
    organ = np.repeat(np.arange(len(organs)), POINTS)
    features = [features_of(encoder, person, size, device, precision) for person in people]

    accuracies = []
    found = []
    for first, second in permutations(features, 2):
        accuracies.append(ridge_accuracy(first, second, organ))
        found.append(share_of_same_organ(first, second, organ))
    return OrganProbe(float(np.mean(accuracies)), float(np.mean(found)), 1 / len(organs))


@torch.no_grad()
def features_of(
    encoder: Encoder, person: LabeledPerson, size: Triple, device: torch.device, precision: str
) -> Tensor:
    """Features at a person's points, less the person's mean: (P, E) float64, organ by organ.

    A crop around the point is encoded whole; its feature is the mean of the tokens around its
    middle, with length 1.
    """
    points = np.concatenate(list(person.points.values()))
    middles = []
    for some in np.array_split(points, -(-len(points) // CROPS_AT_ONCE)):
        crops = np.stack([crop_around(person.image, triple(map(int, p)), size) for p in some])
        with autocast(device, precision):
            last = encoder.features(torch.from_numpy(crops).to(device))[-1]  # (P, E, z, y, x)
        for axis, n in enumerate(last.shape[2:], start=2):
            last = last.narrow(axis, max(0, n // 2 - 1), min(2, n))
        middles.append(last.float().mean((2, 3, 4)).cpu())

    features = F.normalize(torch.cat(middles).double(), dim=1)
    return features - features.mean(0)


def ridge_accuracy(first: Tensor, second: Tensor, organ: np.ndarray) -> float:
    """Accuracy on the second person of a ridge classifier that was trained on the first.

    Args:
        first: (P, E).
        second: (P, E).
        organ: (P,) number of each row's organ, in both.
    """
    from sklearn.linear_model import RidgeClassifier  # here, as it takes seconds to import

    mean = first.mean(0)
    deviation = first.std(0) + 1e-6
    classifier = RidgeClassifier(alpha=REGULARISATION * len(organ))
    classifier.fit(((first - mean) / deviation).numpy(), organ)
    return float((classifier.predict(((second - mean) / deviation).numpy()) == organ).mean())


def share_of_same_organ(first: Tensor, second: Tensor, organ: np.ndarray) -> float:
    """Share of the first person's points whose nearest neighbour (cosine) is of their organ."""
    similarity = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T
    return float((organ[similarity.argmax(1).numpy()] == organ).mean())
