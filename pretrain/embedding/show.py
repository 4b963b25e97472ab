"""alice-embed --show: pictures of what the matcher finds in another person."""

import difflib
from pathlib import Path

import numpy as np

from alice_nnunet.data.partners import Partners
from alice_nnunet.data.volumes import case_names, case_properties, open_volume
from alice_nnunet.errors import UserError
from alice_nnunet.geometry import Triple, triple
from alice_nnunet.matcher.learned import EmbeddingMatcher
from alice_nnunet.names import PARTNERS
from alice_nnunet.pictures import around_body, matches_figure, pair_figure, save_figure

POINTS = 6
LISTED = 10  # cases that a message names at most
WITHOUT_PARTNERS = 0.7  # min_score of a pretraining on an index that has no table of partners
PAIR_SIZE = (96.0, 192.0, 192.0)  # mm (z, y, x), of the two crops


def show_matches(folder: Path, volumes: Path, first: str, second: str) -> None:
    """Draw random body points of one case and their matches in another, and the best as crops.

    Args:
        folder: Of the trained matcher and its index. The two pictures are saved there.
        volumes: Folder of the preprocessed cases.
        first: Case of the points.
        second: Case to search in.

    Raises:
        UserError: One of the cases does not exist, or the index is missing or damaged.
    """
    cases = case_names(volumes)
    for case in (first, second):
        if case not in cases:
            raise UserError(f"--show: no case {case} in {volumes}{suggestion(case, cases)}")

    query = open_volume(volumes, first)
    key = open_volume(volumes, second)

    rng = np.random.default_rng(0)
    points = sorted((query.body.random_point(rng) for _ in range(POINTS)), reverse=True)
    matcher = EmbeddingMatcher(folder)
    matches = [matcher(point, query, key) for point in points]
    threshold = accepted_from(folder)

    planes = matches_figure(
        around_body(query.image[:1][0], first),
        around_body(key.image[:1][0], second),
        np.array(points),
        np.array([match.point for match in matches]),
        [match.score for match in matches],
        query.spacing,
        threshold,
    )
    planes_path = folder / f"matches_{first}_{second}.png"
    save_figure(planes, planes_path)

    best = int(np.argmax([match.score for match in matches]))
    size = triple(round(mm / spacing) for mm, spacing in zip(PAIR_SIZE, query.spacing))
    pair = pair_figure(
        query.read_crop(points[best], size),
        key.read_crop(matches[best].point, size),
        query.spacing,
        (first, f"{second}, score {matches[best].score:.2f}"),
    )
    pair_path = folder / f"pair_{first}_{second}.png"
    save_figure(pair, pair_path)

    in_mm = {
        first: [in_scan(volumes, first, point) for point in points],
        second: [in_scan(volumes, second, match.point) for match in matches],
    }
    files = [write_points(folder, case, (first, second), places) for case, places in in_mm.items()]

    for place, found, match in zip(in_mm[first], in_mm[second], matches):
        verdict = "accepted" if match.score >= threshold else "rejected"
        print(
            f"{first} {as_text(place)} -> {second} {as_text(found)} mm (x, y, z; RAS), score "
            f"{match.score:.2f}, {verdict}"
        )
    print(f"pictures: {planes_path}, {pair_path}")
    print(f"points for 3D Slicer: {', '.join(map(str, files))}")


def suggestion(case: str, cases: list[str]) -> str:
    """The cases that a user may have meant, as the end of a sentence."""
    near = difflib.get_close_matches(case, cases, n=2)
    if near:
        return f": did you mean {' or '.join(near)}?"
    more = f" and {len(cases) - LISTED} more" if len(cases) > LISTED else ""
    return f". Cases: {', '.join(cases[:LISTED])}{more}"


def accepted_from(folder: Path) -> float:
    """The score from which a pretraining with default settings accepts a match."""
    table = folder / PARTNERS
    return Partners.load(table).threshold if table.is_file() else WITHOUT_PARTNERS


def in_scan(volumes: Path, case: str, point: Triple) -> np.ndarray:
    """The place of a voxel of a preprocessed volume in its scan, mm (x, y, z) in RAS.

    Args:
        volumes: Folder of the preprocessed cases.
        case: Name of the volume.
        point: Voxel (z, y, x).
    """
    properties = case_properties(volumes, case)
    cropped = np.array(properties["shape_after_cropping_and_before_resampling"])
    shape = np.array(open_volume(volumes, case).image.shape[1:])
    corner = np.array(properties["bbox_used_for_cropping"])[:, 0]

    # nnU-Net's resampling keeps the edges of the volume where they are, not the middles of voxels.
    voxel = (np.array(point) + 0.5) * cropped / shape - 0.5 + corner
    affine = properties["nibabel_stuff"]["reoriented_affine"]
    return affine[:3, :3] @ voxel[::-1] + affine[:3, 3]


def as_text(place: np.ndarray) -> str:
    """'(12.0, -40.5, 100.0)'"""
    return "(" + ", ".join(f"{mm:.1f}" for mm in place) + ")"


def write_points(folder: Path, case: str, cases: tuple[str, str], places: list[np.ndarray]) -> Path:
    """Write points as a list that 3D Slicer opens over the scan.

    Args:
        folder: For the file.
        case: That the points are in.
        cases: Both of the comparison, for the file's name.
        places: mm (x, y, z), in RAS.
    """
    lines = ["# Markups fiducial file version = 4.11", "# CoordinateSystem = RAS"]
    lines.append("# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label")
    for number, (x, y, z) in enumerate(places, 1):
        lines.append(f"{number},{x:.3f},{y:.3f},{z:.3f},0,0,0,1,1,1,0,{number}")

    path = folder / f"matches_{'_'.join(cases)}_in_{case}.fcsv"
    path.write_text("\n".join(lines) + "\n")
    return path
