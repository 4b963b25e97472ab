"""alice-embed --show: pictures of what the matcher finds in another person."""

from pathlib import Path

import numpy as np

from alice_nnunet.data.volumes import case_names, open_volume
from alice_nnunet.errors import UserError
from alice_nnunet.geometry import triple
from alice_nnunet.matcher.learned import EmbeddingMatcher
from alice_nnunet.pictures import matches_figure, pair_figure, save_figure

POINTS = 6
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
            some = ", ".join(cases[:10]) + (" ..." if len(cases) > 10 else "")
            raise UserError(f"--show: no case {case} in {volumes}. Cases: {some}")

    query = open_volume(volumes, first)
    key = open_volume(volumes, second)

    rng = np.random.default_rng(0)
    points = sorted((query.body.random_point(rng) for _ in range(POINTS)), reverse=True)
    matcher = EmbeddingMatcher(folder)
    matches = [matcher(point, query, key) for point in points]

    planes = matches_figure(
        query.image[:1][0],
        key.image[:1][0],
        np.array(points),
        np.array([match.point for match in matches]),
        [match.score for match in matches],
        query.spacing,
        (first, second),
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

    for point, match in zip(points, matches):
        print(f"{first} voxel {point} -> {second} voxel {match.point}, score {match.score:.2f}")
    print(f"pictures: {planes_path}, {pair_path}")
