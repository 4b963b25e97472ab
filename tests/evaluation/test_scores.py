"""NSD against scikit-image's marching cubes and all distances; DSC against nnU-Net's evaluation."""

import math

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from skimage.measure import marching_cubes

from alice_nnunet.errors import UserError
from alice_nnunet.evaluation.organs import FLARE22, Organ, OrganSet
from alice_nnunet.evaluation.scores import score_case, score_organs, surface_dice

SPACING = (5.0, 1.5, 0.8)  # mm, (z, y, x)


def surface(inside: np.ndarray, spacing) -> tuple[np.ndarray, np.ndarray]:
    """Centres (mm) and areas (mm^2) of the surface in every cell between eight voxels."""
    vertices, faces, _, _ = marching_cubes(
        np.pad(inside, 1).astype(np.float32), 0.5, spacing=spacing
    )
    corners = vertices[faces]  # (F, 3, 3)
    areas = (
        np.linalg.norm(
            np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
        )
        / 2
    )
    cells, of_face = np.unique(
        np.floor(corners.mean(1) / spacing).astype(int), axis=0, return_inverse=True
    )
    return cells * np.array(spacing), np.bincount(of_face.ravel(), areas)


def oracle(predicted, reference, spacing, tolerance) -> float:
    (p, p_areas), (r, r_areas) = surface(predicted, spacing), surface(reference, spacing)
    near = cdist(p, r) <= tolerance + 1e-6
    return (p_areas[near.any(1)].sum() + r_areas[near.any(0)].sum()) / (
        p_areas.sum() + r_areas.sum()
    )


def ellipsoid(centre, radii) -> np.ndarray:
    """Centre and radii in mm, (z, y, x); it may leave the array."""
    places = np.stack(
        np.meshgrid(*(np.arange(n) * s for n, s in zip((12, 30, 40), SPACING)), indexing="ij"), -1
    )
    return (((places - centre) / radii) ** 2).sum(-1) < 1


def boxes() -> tuple[np.ndarray, np.ndarray]:
    a, b = np.zeros((2, 6, 8, 9), bool)
    a[1:4, 2:6, 0:5] = True
    b[1:5, 3:6, 0:9] = True
    return a, b


@pytest.mark.parametrize("tolerance", [0.0, 0.8, 1.5, 2.0, 3.0, 5.0, 9.0])
@pytest.mark.parametrize(
    "pair",
    [
        boxes(),
        (ellipsoid((25, 20, 15), (18, 14, 9)), ellipsoid((27, 24, 15), (22, 16, 12))),
        (ellipsoid((2, 20, 30), (18, 14, 9)), ellipsoid((6, 24, 33), (22, 30, 12))),
    ],
    ids=["boxes", "inside", "cut"],
)
def test_nsd_with_anisotropic_spacing(pair, tolerance):
    assert surface_dice(*pair, SPACING, tolerance) == pytest.approx(
        oracle(*pair, SPACING, tolerance), abs=1e-5
    )
    turned = [a.transpose(2, 0, 1) for a in pair]
    assert surface_dice(*turned, (0.8, 5.0, 1.5), tolerance) == pytest.approx(
        surface_dice(*pair, SPACING, tolerance), abs=1e-5
    )


def test_nsd_of_ragged_shapes():
    """Where voxels meet only in an edge or a corner, areas agree less: surfaces differ."""
    rng = np.random.default_rng(0)
    a, b = (gaussian_filter(rng.normal(size=(14, 20, 22)), 1.5) > 0.05 for _ in range(2))
    assert surface_dice(a, b, SPACING, 1.5) == pytest.approx(oracle(a, b, SPACING, 1.5), abs=3e-3)


def labelled(**organs) -> np.ndarray:
    """(12, 10, 10): label 5 (as _5=...) fills its own square on these axial slices."""
    labels = np.zeros((12, 10, 10), np.uint8)
    for name, slices in organs.items():
        label = int(name[1:])
        for z in slices:
            labels[z, label % 3 * 3 : label % 3 * 3 + 3, label // 3 * 2 : label // 3 * 2 + 2] = (
                label
            )
    return labels


def test_flares_rules_by_hand():
    reference = labelled(_1=range(4, 8), _5=range(4, 8), _6=(2, 3, 6), _10=range(3, 9))
    predicted = labelled(_1=range(2, 10), _5=range(2, 10), _6=(2, 3, 4, 5, 6), _13=(1, 2))
    scores = {s.organ: s for s in score_organs(predicted, reference, (1.0, 1.0, 1.0), 0, FLARE22)}
    assert scores["liver"].dsc == pytest.approx(2 * 4 / (4 + 8)) and 0 < scores["liver"].nsd <= 1
    for organ in (
        "aorta",
        "inferior vena cava",
    ):  # what lies on other slices, or in a gap, does not count
        assert (scores[organ].dsc, scores[organ].nsd) == (1, 1) and scores[
            organ
        ].predicted_voxels == scores[organ].reference_voxels
    assert (scores["esophagus"].dsc, scores["esophagus"].nsd) == (0, 0)  # something against empty
    assert (scores["left kidney"].dsc, scores["left kidney"].nsd) == (
        0,
        0,
    )  # empty against something
    assert (scores["gallbladder"].dsc, scores["gallbladder"].nsd) == (1, 1)  # empty against empty
    none = score_organs(labelled(_5=(1,)), labelled(), (1.0, 1.0, 1.0), 0, FLARE22)[4]
    assert (none.dsc, none.nsd, none.predicted_voxels) == (
        0,
        0,
        6,
    )  # no slice of the reference has an aorta


def write(path, labels, orientation="LPS", spacing=SPACING):
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(path))
    return path


def test_scores_do_not_depend_on_how_the_file_is_stored(tmp_path):
    reference, predicted = (
        labelled(_1=range(4, 8), _5=range(4, 8)),
        labelled(_1=range(2, 7), _5=range(3, 10)),
    )
    predicted = np.roll(predicted, 1, axis=1)
    scores = [
        score_case(
            write(tmp_path / "p.nii.gz", predicted, o),
            write(tmp_path / "r.nii.gz", reference, o),
            FLARE22,
        )
        for o in ("LPS", "RAS", "SRP", "AIL")
    ]
    assert (
        0 < scores[0][0].nsd < 1
        and 0 < scores[0][4].dsc < 1
        and scores[0][4].reference_voxels == 4 * 6
    )
    for turned in scores[1:]:
        assert [(s.organ, s.dsc, s.reference_voxels, s.predicted_voxels) for s in turned] == [
            (s.organ, s.dsc, s.reference_voxels, s.predicted_voxels) for s in scores[0]
        ]
        assert [s.nsd for s in turned] == pytest.approx([s.nsd for s in scores[0]], abs=1e-5)


def test_regions_and_the_ignore_label_as_nnunet_counts_them(tmp_path):
    rng = np.random.default_rng(1)
    reference, predicted = (
        np.digitize(gaussian_filter(rng.normal(size=(12, 20, 22)), 1.5), bins).astype(np.uint8)
        for bins in ([0.05, 0.08, 0.1], [0.0, 0.08])
    )  # labels 0 to 3, and 0 to 2
    files = write(tmp_path / "p.nii.gz", predicted), write(tmp_path / "r.nii.gz", reference)
    organs = OrganSet(
        "own",
        (Organ("whole", (1, 2), 2.0), Organ("core", (2,), 2.0), Organ("none", (4,), 2.0)),
        ignore=3,
    )
    whole, core, none = score_case(*files, organs)
    nnunet = compute_metrics(
        str(files[1]), str(files[0]), SimpleITKIO(), [(1, 2), 2, 4], ignore_label=3
    )["metrics"]
    assert whole.dsc == pytest.approx(nnunet[1, 2]["Dice"]) and core.dsc == pytest.approx(
        nnunet[2]["Dice"]
    )
    assert (
        whole.predicted_voxels == nnunet[1, 2]["n_pred"]
        and whole.reference_voxels == nnunet[1, 2]["n_ref"]
    )
    assert math.isnan(none.dsc) and math.isnan(none.nsd) and np.isnan(nnunet[4]["Dice"])
    kept = reference != 3
    expected = oracle((predicted > 0) & kept, np.isin(reference, (1, 2)), SPACING, 2.0)
    assert whole.nsd == pytest.approx(expected, abs=1e-2) and 0 < whole.nsd < 1


def test_unknown_labels_are_refused(tmp_path):
    known = write(tmp_path / "known.nii.gz", labelled(_1=(1, 2), _2=(3,)))
    unknown = write(tmp_path / "unknown.nii.gz", labelled(_1=(1,), _7=(2,)))
    organs = OrganSet("own", (Organ("liver", (1,), 2.0), Organ("spleen", (2,), 2.0)), ignore=7)
    assert score_case(known, unknown, organs)[0].dsc == pytest.approx(2 / 3)
    with pytest.raises(
        UserError,
        match=r"unknown.nii.gz has the label\(s\) 7, which the organ set own does not have",
    ):
        score_case(unknown, known, organs)  # no prediction says ignore
