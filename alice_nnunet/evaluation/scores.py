"""DSC and NSD of every organ of one case."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.metrics import compute_surface_dice
from scipy.ndimage import find_objects

from alice_nnunet.errors import UserError
from alice_nnunet.evaluation.label_image import check_same_grid, read_labels, turned_labels
from alice_nnunet.evaluation.organs import Organ, OrganSet
from alice_nnunet.geometry import Spacing, triple

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Score:
    """The scores of one organ of one case.

    Attributes:
        organ: its name.
        dsc: Dice similarity coefficient, 0 to 1; NaN where the case does not count.
        nsd: normalised surface Dice, 0 to 1; NaN where the case does not count.
        reference_voxels: voxels of the reference that were compared.
        predicted_voxels: voxels of the prediction that were compared.
    """

    organ: str
    dsc: float
    nsd: float
    reference_voxels: int
    predicted_voxels: int


def score_case(predicted_file: Path, reference_file: Path, organ_set: OrganSet) -> list[Score]:
    """The scores of every organ of one case, in the order of organ_set.

    Raises:
        UserError: a file is not a label image, the grids differ, or a label is unknown.
    """
    check_same_grid(predicted_file, reference_file)
    predicted = read_labels(predicted_file)
    reference = read_labels(reference_file)

    in_reference = organ_set.labels
    if organ_set.ignore is not None:
        in_reference = in_reference | {organ_set.ignore}
    check_labels(predicted_file, predicted.labels, organ_set.labels, organ_set.name)
    check_labels(reference_file, reference.labels, in_reference, organ_set.name)

    labels = turned_labels(predicted, reference)
    return score_organs(
        labels, reference.labels, reference.spacing, reference.grid.axial_axis, organ_set
    )


def score_organs(
    predicted: np.ndarray,
    reference: np.ndarray,
    spacing: Spacing,
    axial_axis: int,
    organ_set: OrganSet,
) -> list[Score]:
    """The scores of every organ, in the order of organ_set.

    Voxels that the reference ignores count as background in both, as in nnU-Net; organs end there.

    Args:
        predicted: labels (Z, Y, X).
        reference: labels (Z, Y, X).
        spacing: mm, (z, y, x).
        axial_axis: the axis of the arrays from feet to head.
        organ_set: what to score.
    """
    if organ_set.ignore is not None:
        predicted = np.where(reference == organ_set.ignore, 0, predicted)

    boxes = [find_objects(labels) for labels in (predicted, reference)]
    scores = []
    for organ in organ_set.organs:
        # Only the box around the organ in both images is compared: much faster, the same result.
        box = common_box(boxes_of(organ, boxes[0]) + boxes_of(organ, boxes[1]))
        organ_predicted = np.isin(predicted[box], organ.labels)
        organ_reference = np.isin(reference[box], organ.labels)
        scores.append(
            score_organ(
                organ_predicted, organ_reference, spacing, axial_axis, organ, organ_set.both_empty
            )
        )
    return scores


def boxes_of(organ: Organ, boxes: list[Box | None]) -> list[Box]:
    """The boxes of the labels of an organ that are in an image.

    Args:
        organ: the organ.
        boxes: of label 1, 2, ... of the image, None for a label that it does not have.
    """
    found = [boxes[label - 1] for label in organ.labels if label <= len(boxes)]
    return [box for box in found if box]


def common_box(boxes: list[Box]) -> Box:
    """The smallest box around all boxes; an empty box if there are none."""
    if not boxes:
        return (slice(0, 0), slice(0, 0), slice(0, 0))
    return triple(
        slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes)
    )


def score_organ(
    predicted: np.ndarray,
    reference: np.ndarray,
    spacing: Spacing,
    axial_axis: int,
    organ: Organ,
    both_empty: float,
) -> Score:
    """The scores of one organ. predicted, reference: bool (Z, Y, X)."""
    # An organ that the reference does not have is compared on every slice.
    if organ.reference_slices_only and reference.any():
        in_plane = tuple(axis for axis in range(3) if axis != axial_axis)
        predicted = predicted & reference.any(axis=in_plane, keepdims=True)

    reference_voxels = int(reference.sum())
    predicted_voxels = int(predicted.sum())
    if reference_voxels or predicted_voxels:
        dsc = dice(predicted, reference)
        nsd = surface_dice(predicted, reference, spacing, organ.tolerance)
    else:
        dsc = both_empty
        nsd = both_empty
    return Score(organ.name, dsc, nsd, reference_voxels, predicted_voxels)


def dice(predicted: np.ndarray, reference: np.ndarray) -> float:
    """DSC of two bool arrays of which at least one is not empty."""
    return 2 * float((predicted & reference).sum()) / float(predicted.sum() + reference.sum())


def surface_dice(
    predicted: np.ndarray, reference: np.ndarray, spacing: Spacing, tolerance: float
) -> float:
    """NSD: the share of both surfaces that lies within a tolerance of the other one.

    Nikolov et al., 2018 (arXiv 1809.04430). MONAI's computation with subvoxels is DeepMind's, which
    FLARE 2022 uses: surface elements between the voxels, weighted by their area in mm^2. DeepMind's
    own package on PyPI (surface-distance 0.1) uses names that numpy 2 does not have. A surface
    exactly at the tolerance counts: MONAI's distances are float32, so 5 x 0.8 mm from a float32
    header are 4 mm.

    Args:
        predicted: bool (Z, Y, X). What is outside the arrays counts as empty.
        reference: bool (Z, Y, X). One of the two may be empty, not both.
        spacing: mm, (z, y, x).
        tolerance: mm.
    """
    if not (predicted.any() and reference.any()):
        return 0.0

    images = [
        torch.from_numpy(np.ascontiguousarray(image))[None, None]  # (1, 1, Z, Y, X)
        for image in (predicted, reference)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of an argument of its own
        return compute_surface_dice(
            *images, [tolerance], include_background=True, spacing=spacing, use_subvoxels=True
        ).item()


def check_labels(path: Path, labels: np.ndarray, known: set[int], organ_set: str) -> None:
    """Raise UserError where labels has a value that is neither the background nor known."""
    found = [label for label, box in enumerate(find_objects(labels), 1) if box]
    unknown = [str(label) for label in found if label not in known]
    if unknown:
        raise UserError(
            f"{path} has the label(s) {', '.join(unknown)}, which the organ set {organ_set} does "
            "not have. Choose another set with -organs or -dataset_json, or name the labels in a "
            "file"
        )
