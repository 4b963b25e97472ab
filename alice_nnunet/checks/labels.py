"""Labels: whether they lie on their image, and hold only the values that dataset.json has."""

import numpy as np

from alice_nnunet.checks.findings import Decisions, Finding
from alice_nnunet.checks.header import Geometry, corner_distance, is_same_grid
from alice_nnunet.text import voxels

EMPTY = "label-empty"  # kind of the finding on a label of background alone, which may be right
LISTED = 10  # values that a message lists at most


def label_values(dataset_json: dict) -> set[int]:
    """The values that a label may have: of all labels, regions and the ignore label."""
    values = {0}
    for value in dataset_json["labels"].values():
        values |= {int(v) for v in (value if isinstance(value, (list, tuple)) else [value])}
    return values


def check_label_geometry(
    label: Geometry, image: Geometry, name: str, image_name: str, decisions: Decisions
) -> list[Finding]:
    """Compare the grid of a label with that of its image; both as their files store them."""
    taken = "image-geometry" in decisions.take

    if label.shape != image.shape:
        turned = label.reoriented(), image.reoriented()
        if turned[0].shape == turned[1].shape and is_same_grid(*turned):
            return [turned_finding(label, image, name, image_name)]
        return [
            Finding(
                "label-geometry",
                name,
                f"{voxels(label.shape)} voxels (x, y, z), and its image {image_name} has "
                f"{voxels(image.shape)}",
                "one label for each voxel of the image",
                "Make the label again on the grid of its image",
            )
        ]

    if is_same_grid(label, image):
        return []
    if is_same_grid(label.reoriented(), image.reoriented()):
        return [turned_finding(label, image, name, image_name)]

    found = (
        f"lies elsewhere than its image {image_name}: axes to {label.orientation} and "
        f"{image.orientation}, spacing {voxels(label.spacing.round(3))} and "
        f"{voxels(image.spacing.round(3))} mm, corners up to "
        f"{corner_distance(label, image):.3g} mm apart"
    )
    if taken:
        remedy = "The image's geometry is taken (--take image-geometry)"
        return [Finding("label-geometry", name, found, remedy=remedy, severity="warning")]
    return [
        Finding(
            "label-geometry",
            name,
            found,
            "the place of the image",
            "Correct the label's header, or, if its voxels fit those of the image one by one, use "
            "--take image-geometry",
        )
    ]


def turned_finding(label: Geometry, image: Geometry, name: str, image_name: str) -> Finding:
    """The finding on a label that is stored in another orientation, at the same place."""
    return Finding(
        "label-orientation",
        name,
        f"stored as {label.orientation} and its image {image_name} as {image.orientation}, at the "
        f"same place",
        remedy="Plans of alice-plan turn both; nnU-Net's own plans compare them voxel by voxel, so "
        "store both alike to use them",
        severity="warning",
    )


def check_label_values(label: np.ndarray, allowed: set[int], name: str) -> list[Finding]:
    """Compare the values of a label with those of dataset.json."""
    values = distinct(label)
    finite = values[np.isfinite(values)]

    fractions = finite[finite != np.floor(finite)]
    if len(finite) < len(values) or len(fractions):
        examples = [*fractions[:LISTED].tolist(), *values[~np.isfinite(values)][:1].tolist()]
        return [
            Finding(
                "label-values",
                name,
                f"values that are not whole numbers: {listed(examples)}",
                f"the values of dataset.json: {listed(sorted(allowed))}",
                "Was the label interpolated or scaled? Make it again with whole numbers",
            )
        ]

    unknown = [int(value) for value in finite if int(value) not in allowed]
    if not unknown:
        return [] if finite.any() else [Finding(EMPTY, name, "only background", severity="note")]
    return [
        Finding(
            "label-values",
            name,
            f"values that dataset.json does not have: {listed(unknown)}",
            f"the values of dataset.json: {listed(sorted(allowed))}",
            'Correct the label, or name the values in "labels" of dataset.json',
        )
    ]


def check_not_all_empty(found: dict[str, list[Finding]]) -> list[Finding]:
    """A finding if no label of a dataset has a voxel that is not background.

    Args:
        found: findings of each labeled case.
    """
    empty = [any(f.kind == EMPTY for f in findings) for findings in found.values()]
    if not empty or not all(empty):
        return []
    return [
        Finding(
            EMPTY,
            "labelsTr",
            f"all {len(empty)} labels hold only background",
            "voxels of the labels of dataset.json",
            "Were the labels made, and copied, as whole numbers?",
        )
    ]


def distinct(label: np.ndarray) -> np.ndarray:
    """The distinct values of an array, sorted; quick for the small whole numbers of labels."""
    if label.dtype == np.uint8:
        return np.flatnonzero(np.bincount(label.ravel(), minlength=256))
    return np.unique(label)


def listed(values: list) -> str:
    """The first values as text."""
    text = ", ".join(f"{value:g}" for value in values[:LISTED])
    return f"{text} and {len(values) - LISTED} more" if len(values) > LISTED else text
