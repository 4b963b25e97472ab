"""Are alice-evaluate's numbers those of FLARE 2022's own implementation?

    pip install surface-distance==0.1
    python benchmarks/evaluation.py [LABELS]

LABELS is a folder of label images in FLARE 2022's numbering (default: those that ship with the
package). Each is compared with itself shifted by (1, -1, 2) voxels, eroded by one voxel, and
roughened. Prints for each kind of copy the mean DSC and NSD and the largest differences from a
second implementation: DeepMind's surface-distance, which FLARE 2022's script uses, once with our
reading of its slices and once with that script's [first, last).
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import surface_distance
from scipy import ndimage

import alice_nnunet
from alice_nnunet.evaluation.organs import FLARE22, Organ
from alice_nnunet.evaluation.scores import score_case

SHIPPED = Path(alice_nnunet.__file__).parent / "demo" / "volumes"
HEADER = (
    "| copy | organs | DSC | NSD | largest difference DSC | NSD "
    "| script's slices: largest difference DSC | NSD | mean DSC | NSD |"
)


def shifted(labels: np.ndarray) -> np.ndarray:
    return ndimage.shift(labels, (1, -1, 2), order=0)


def eroded(labels: np.ndarray) -> np.ndarray:
    parts = [
        np.where(ndimage.binary_erosion(labels == label), label, 0) for label in FLARE22.labels
    ]
    return sum(parts).astype(np.uint8)


def roughened(labels: np.ndarray) -> np.ndarray:
    """Up to two voxels of the background around every organ are added to it, in patches."""
    rng = np.random.default_rng(0)
    rough = labels.copy()
    for label in FLARE22.labels:
        patches = ndimage.gaussian_filter(rng.normal(size=labels.shape), 2) > 0.02
        around = ndimage.binary_dilation(labels == label, iterations=2)
        rough[around & patches & (rough == 0)] = label
    return rough


def second_opinion(
    predicted: np.ndarray,
    reference: np.ndarray,
    spacing: list[float],
    organ: Organ,
    as_script: bool,
) -> tuple[float, float]:
    """DSC and NSD of one organ by surface-distance.

    Args:
        predicted: bool (x, y, z).
        reference: bool (x, y, z).
        spacing: mm, (x, y, z).
        organ: which one.
        as_script: leave out the last slice of the reference, as FLARE 2022's script does.
    """
    if not reference.any():
        return (0.0, 0.0) if predicted.any() else (1.0, 1.0)

    if organ.reference_slices_only:
        slices = np.flatnonzero(reference.any((0, 1)))
        counted = slice(slices[0], slices[-1]) if as_script else slices
        predicted = predicted[..., counted]
        reference = reference[..., counted]

    # surface-distance 0.1 fails for empty images: it asks numpy for Inf, which numpy 2 calls inf.
    if not (predicted.any() and reference.any()):
        return (0.0, 0.0)
    surfaces = surface_distance.compute_surface_distances(reference, predicted, spacing)
    dsc = surface_distance.compute_dice_coefficient(reference, predicted)
    nsd = surface_distance.compute_surface_dice_at_tolerance(surfaces, organ.tolerance)
    return dsc, nsd


def compare(path: Path, spoil: Callable, folder: Path) -> np.ndarray:
    """Scores of a spoiled copy of a label image.

    Returns:
        (organs, 3, 2): DSC and NSD of ours, of the second implementation, and of the second one
        with the script's slices.
    """
    image = nibabel.as_closest_canonical(nibabel.load(path))
    reference = np.asarray(image.dataobj)
    predicted = spoil(reference)
    predicted_file = folder / "predicted.nii.gz"
    reference_file = folder / "reference.nii.gz"
    nibabel.save(nibabel.Nifti1Image(predicted, image.affine), predicted_file)
    nibabel.save(nibabel.Nifti1Image(reference, image.affine), reference_file)
    spacing = [float(edge) for edge in nibabel.load(reference_file).header.get_zooms()]

    rows = []
    for ours, organ in zip(score_case(predicted_file, reference_file, FLARE22), FLARE22.organs):
        masks = (predicted == organ.labels[0], reference == organ.labels[0])
        same_slices = second_opinion(*masks, spacing, organ, as_script=False)
        script_slices = second_opinion(*masks, spacing, organ, as_script=True)
        rows.append(((ours.dsc, ours.nsd), same_slices, script_slices))
    return np.array(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("labels", nargs="?", type=Path, default=SHIPPED, metavar="LABELS")
    folder = parser.parse_args().labels
    pattern = "*_labels.nii.gz" if folder == SHIPPED else "*.nii.gz"
    paths = sorted(folder.glob(pattern))

    print(HEADER)
    print("|" + "---|" * 10)
    with tempfile.TemporaryDirectory() as temporary:
        for spoil in (shifted, eroded, roughened):
            scores = np.concatenate([compare(path, spoil, Path(temporary)) for path in paths])
            ours, same, script = scores.transpose(1, 0, 2)
            cells = [
                *ours.mean(0),
                *np.abs(ours - same).max(0),
                *np.abs(ours - script).max(0),
                *script.mean(0),
            ]
            shown = [f"{cell:.2g}" if cell < 1e-3 else f"{cell:.4f}" for cell in cells]
            print(f"| {spoil.__name__} | {len(scores)} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
