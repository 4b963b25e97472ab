"""DSC and NSD of every organ of one case."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.metrics import compute_surface_dice
from scipy.ndimage import find_objects

from alice_nnunet.errors import UserError
from alice_nnunet.evaluation.label_image import check_same_grid, read_labels
from alice_nnunet.evaluation.organs import Organ, OrganSet

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Score:
    """dsc, nsd: 0 to 1, or NaN where the case does not count. The voxels are those that were compared."""

    organ: str
    dsc: float
    nsd: float
    reference_voxels: int
    predicted_voxels: int


def score_case(predicted_file: Path, reference_file: Path, organ_set: OrganSet) -> list[Score]:
    """Every organ of one case, in the order of organ_set.

    Raises UserError for a file that is no label image, for two grids, and for labels that organ_set does not know.
    """
    check_same_grid(predicted_file, reference_file)
    predicted, reference = read_labels(predicted_file), read_labels(reference_file)
    check_labels(predicted_file, predicted.labels, organ_set.labels, organ_set.name)
    check_labels(
        reference_file,
        reference.labels,
        organ_set.labels | ({organ_set.ignore} - {None}),
        organ_set.name,
    )
    return score_organs(
        predicted.labels, reference.labels, reference.spacing, reference.grid.axial_axis, organ_set
    )


def score_organs(
    predicted: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, float, float],
    axial_axis: int,
    organ_set: OrganSet,
) -> list[Score]:
    """predicted, reference: labels (Z, Y, X). spacing: mm, (z, y, x). axial_axis: the array's axis from feet to head.

    Voxels with the ignore label in the reference are empty in both, as nnU-Net counts them; the surfaces are cut there.
    """
    if organ_set.ignore is not None:
        predicted = np.where(reference == organ_set.ignore, 0, predicted)
    boxes = [find_objects(labels) for labels in (predicted, reference)]
    scores = []
    for organ in organ_set.organs:
        box = common_box(
            [
                b[label - 1]
                for b in boxes
                for label in organ.labels
                if label <= len(b) and b[label - 1]
            ]
        )
        in_predicted, in_reference = (
            np.isin(labels[box], organ.labels) for labels in (predicted, reference)
        )
        scores.append(
            score_organ(
                in_predicted, in_reference, spacing, axial_axis, organ, organ_set.both_empty
            )
        )
    return scores


def common_box(boxes: list[Box]) -> Box:
    """The smallest box around all of them; an empty one where there are none."""
    if not boxes:
        return (slice(0, 0),) * 3
    return tuple(
        slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes)
    )


def score_organ(
    predicted: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, float, float],
    axial_axis: int,
    organ: Organ,
    both_empty: float,
) -> Score:
    """One organ. predicted, reference: bool (Z, Y, X)."""
    if (
        organ.reference_slices_only and reference.any()
    ):  # where the reference has none of it, every slice counts
        others = tuple(axis for axis in range(3) if axis != axial_axis)
        predicted = predicted & reference.any(axis=others, keepdims=True)
    counts = int(reference.sum()), int(predicted.sum())
    if not any(counts):
        return Score(organ.name, both_empty, both_empty, *counts)
    return Score(
        organ.name,
        dice(predicted, reference),
        surface_dice(predicted, reference, spacing, organ.tolerance),
        *counts,
    )


def dice(predicted: np.ndarray, reference: np.ndarray) -> float:
    """DSC of two bool arrays of which at least one is not empty."""
    return 2 * float((predicted & reference).sum()) / float(predicted.sum() + reference.sum())


def surface_dice(
    predicted: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, float, float],
    tolerance: float,
) -> float:
    """NSD: the share of both surfaces' area that lies within tolerance (mm) of the other surface (Nikolov et al., 2018,
    arXiv 1809.04430). predicted, reference: bool (Z, Y, X), not both empty; what is outside the arrays counts as empty.

    MONAI's computation with subvoxels is DeepMind's, which FLARE 2022 uses: surface elements between the voxels, weighed by
    their area in mm^2. DeepMind's own package on PyPI (surface-distance 0.1) uses names that numpy 2 has not. A surface
    exactly at the tolerance counts: MONAI's distances are float32, so that 5 x 0.8 mm of a header's float32 is 4 mm.
    """
    if not (predicted.any() and reference.any()):
        return 0.0
    pair = (
        torch.from_numpy(np.ascontiguousarray(a))[None, None] for a in (predicted, reference)
    )  # (1, 1, Z, Y, X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of an argument of its own
        return compute_surface_dice(
            *pair, [tolerance], include_background=True, spacing=spacing, use_subvoxels=True
        ).item()


def check_labels(path: Path, labels: np.ndarray, known: set[int], organ_set: str) -> None:
    """Raise UserError where labels has a value that is neither the background nor known."""
    if unknown := [
        label for label, box in enumerate(find_objects(labels), 1) if box and label not in known
    ]:
        raise UserError(
            f"{path} has the label(s) {', '.join(map(str, unknown))}, which the organ set {organ_set} does not know: "
            "choose another with -organs or -dataset_json, or name them in a file"
        )
