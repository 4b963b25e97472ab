"""Are alice-evaluate's numbers those of FLARE 2022's own implementation? On labels of real CT and spoiled copies of them.

    pip install surface-distance==0.1 && python benchmarks/evaluation.py [LABELS]

LABELS: a folder of label images in FLARE 2022's numbering; default: those that ship with the package. Each is compared with
itself shifted by (1, -1, 2) voxels, eroded by one voxel, and roughened. Second implementation: DeepMind's surface-distance,
which FLARE 2022's script uses, once with our reading of its slices and once with that script's [first, last).
"""

import argparse
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import surface_distance
from scipy import ndimage

import alice_nnunet
from alice_nnunet.evaluation.organs import FLARE22, Organ
from alice_nnunet.evaluation.scores import score_case

EMPTY = 0.0, 0.0


def eroded(labels: np.ndarray) -> np.ndarray:
    return sum(
        np.where(ndimage.binary_erosion(labels == label), label, 0) for label in FLARE22.labels
    ).astype(np.uint8)


def roughened(labels: np.ndarray) -> np.ndarray:
    """Up to two voxels of the background around every organ are added to it, in patches."""
    rng, rough = np.random.default_rng(0), labels.copy()
    for label in FLARE22.labels:
        patches = ndimage.gaussian_filter(rng.normal(size=labels.shape), 2) > 0.02
        rough[ndimage.binary_dilation(labels == label, iterations=2) & patches & (rough == 0)] = (
            label
        )
    return rough


SPOILED = {
    "shifted": lambda labels: ndimage.shift(labels, (1, -1, 2), order=0),
    "eroded": eroded,
    "roughened": roughened,
}


def second_opinion(
    predicted: np.ndarray, reference: np.ndarray, spacing, organ: Organ, as_script: bool
) -> tuple[float, float]:
    """DSC and NSD of one organ by surface-distance. predicted, reference: bool (x, y, z). spacing: mm, (x, y, z)."""
    if not reference.any():
        return EMPTY if predicted.any() else (1.0, 1.0)
    if organ.reference_slices_only:
        slices = np.flatnonzero(reference.any((0, 1)))
        counted = slice(slices[0], slices[-1]) if as_script else slices
        predicted, reference = predicted[..., counted], reference[..., counted]
    if not (
        predicted.any() and reference.any()
    ):  # surface-distance 0.1 asks numpy for Inf, which numpy 2 calls inf
        return EMPTY
    surfaces = surface_distance.compute_surface_distances(reference, predicted, spacing)
    return (
        surface_distance.compute_dice_coefficient(reference, predicted),
        surface_distance.compute_surface_dice_at_tolerance(surfaces, organ.tolerance),
    )


def compare(path: Path, spoil, folder: Path) -> list[tuple[tuple[float, float], ...]]:
    """For every organ (DSC, NSD) of ours, of the second implementation, and of it with the script's slices."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    reference = np.asarray(image.dataobj)
    predicted = spoil(reference)
    files = folder / "predicted.nii.gz", folder / "reference.nii.gz"
    for labels, file in zip((predicted, reference), files):
        nibabel.save(nibabel.Nifti1Image(labels, image.affine), file)
    spacing = [float(edge) for edge in nibabel.load(files[1]).header.get_zooms()]
    return [
        (
            (ours.dsc, ours.nsd),
            *(
                second_opinion(
                    predicted == organ.labels[0],
                    reference == organ.labels[0],
                    spacing,
                    organ,
                    as_script,
                )
                for as_script in (False, True)
            ),
        )
        for ours, organ in zip(score_case(*files, FLARE22), FLARE22.organs)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "labels",
        nargs="?",
        type=Path,
        default=Path(alice_nnunet.__file__).parent / "demo" / "volumes",
    )
    folder = parser.parse_args().labels
    paths = [
        path
        for path in sorted(folder.glob("*.nii.gz"))
        if "_labels" in path.name or folder.name != "volumes"
    ]
    print(
        "| copy | organs | DSC | NSD | largest difference DSC | NSD | script's slices: largest difference DSC | NSD | mean DSC | NSD |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for name, spoil in SPOILED.items():
            values = np.array(
                [row for path in paths for row in compare(path, spoil, Path(temporary))]
            )  # (organs, 3, 2)
            ours, same, script = values.transpose(1, 0, 2)
            cells = [
                *ours.mean(0),
                *np.abs(ours - same).max(0),
                *np.abs(ours - script).max(0),
                *script.mean(0),
            ]
            print(
                f"| {name} | {len(values)} | "
                + " | ".join(f"{cell:.2g}" if cell < 1e-3 else f"{cell:.4f}" for cell in cells)
                + " |"
            )


if __name__ == "__main__":
    main()
