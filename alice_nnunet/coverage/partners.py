"""What each scan of an index shows, and which others show it too.

Everything is near-linear in the number of scans: each is compared with a fixed number of anchors,
places of other scans, and then with a fixed number of scans that match the same anchors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alice_nnunet.coverage.body_axis import BodyAxis, Heights, find_body_axis
from alice_nnunet.coverage.surroundings import (
    Surroundings,
    best_scores,
    joined,
    random_surroundings,
)
from alice_nnunet.data.partners import LEVELS, NO_REGION, Partners
from alice_nnunet.matcher.learned import opened
from alice_nnunet.workers import with_progress

ANCHORS = 256  # places that every scan is compared with
PLACES = 96  # of each scan in the table of partners
OTHERS = 40  # scans in the table for each
POOL = 1000  # scans that these are chosen from

REGION = 100.0  # mm of a slab of the body

# Where a place is not shown, the best match elsewhere still has some score. Other places of the
# same scan tell how high: nothing there is the place.
FAR = 100.0  # mm from a place on which others are known to differ
FALSE_MATCHES = 0.02  # share of them that reach the threshold
CALIBRATION_SCANS = 100
CALIBRATION_PLACES = 40  # of each


@dataclass(frozen=True)
class Signatures:
    """What N scans show, by A anchors.

    Attributes:
        scores: (N, A) float32, of the best match of each anchor.
        positions: (N, A, 3) float32, mm, where that is.
    """

    scores: np.ndarray
    positions: np.ndarray


def draw_anchors(folder: Path, cases: Sequence[str], rng: np.random.Generator) -> Surroundings:
    """ANCHORS places, as evenly over the scans as can be."""
    chosen = rng.permutation(len(cases))[:ANCHORS]
    counts = np.full(len(chosen), ANCHORS // len(chosen))
    counts[: ANCHORS % len(chosen)] += 1

    return joined(
        [
            random_surroundings(opened(folder, cases[case]), count, rng)
            for case, count in zip(chosen, counts)
        ]
    )


def find_anchors(folder: Path, cases: Sequence[str], anchors: Surroundings) -> Signatures:
    """Where each scan shows each anchor, and how certainly."""
    found = [
        best_scores(opened(folder, case), anchors)
        for case, _ in with_progress(((case, None) for case in cases), "comparing", len(cases))
    ]
    scores, positions = zip(*found)
    return Signatures(np.array(scores, np.float32), np.array(positions, np.float32))


def calibrate(folder: Path, cases: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """Scores of matches that are known to be false: with far places of the same scan, sorted."""
    scores = []
    for number in rng.permutation(len(cases))[:CALIBRATION_SCANS]:
        embedding = opened(folder, cases[number])
        places = random_surroundings(embedding, CALIBRATION_PLACES, rng)
        best, _ = best_scores(embedding, places, not_within=FAR)
        scores.append(best[best > -1])  # a small scan has nothing that far away
    return np.sort(np.concatenate(scores))


def threshold_of(false_scores: np.ndarray, otherwise: float) -> float:
    """The score that a share of FALSE_MATCHES of the false matches reaches.

    Args:
        false_scores: Of calibrate.
        otherwise: The answer where there are too few of them to tell.
    """
    if len(false_scores) < 1 / FALSE_MATCHES:
        return otherwise
    return float(np.clip(np.quantile(false_scores, 1 - FALSE_MATCHES), 0, 1))


def choose_others(
    number: int,
    signatures: Signatures,
    contents: np.ndarray,
    threshold: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """OTHERS scans of other people to compare a scan with.

    Of POOL scans at random, those that match the same anchors come first. Of twice as many as are
    wanted a random half is taken: otherwise the same few would be everyone's partners.
    """
    pool = rng.permutation(len(contents))[: POOL + 1]
    pool = pool[contents[pool] != contents[number]]
    if len(pool) <= OTHERS:
        return np.sort(pool)

    least = threshold - 0.1  # an anchor that is nearly matched tells something, too
    shown = np.maximum(signatures.scores[number] - least, 0)
    shown_there = np.maximum(signatures.scores[pool] - least, 0)
    common = np.minimum(shown, shown_there).sum(1)

    best = np.argsort(-common, kind="stable")[: 2 * OTHERS]
    likely = best[common[best] > 0]
    if len(likely) < OTHERS:
        likely = best[:OTHERS]
    return np.sort(pool[rng.permutation(likely)[:OTHERS]])


def make_partners(
    folder: Path,
    cases: Sequence[str],
    contents: np.ndarray,
    signatures: Signatures,
    threshold: float,
    rng: np.random.Generator,
) -> tuple[Partners, BodyAxis]:
    """Compare places of every scan with the scans that may show them.

    Args:
        folder: The index.
        cases: Scans in it.
        contents: (N,) their checksums.
        signatures: Of these scans.
        threshold: Score of a match.
        rng: Source of random numbers.

    Returns:
        The table, and the scans on one axis along the body.
    """
    count = len(cases)
    positions = np.full((count, PLACES, 3), np.nan, np.float32)
    others = np.full((count, OTHERS), -1, np.int32)
    scores = np.zeros((count, PLACES, OTHERS), np.uint8)
    found = np.full((count, PLACES, OTHERS), np.nan, np.float32)  # mm, heights

    numbered = ((case, number) for number, case in enumerate(cases))
    for case, number in with_progress(numbered, "finding partners of", count):
        places = random_surroundings(opened(folder, case), PLACES, rng)
        positions[number, : len(places)] = places.positions

        chosen = choose_others(number, signatures, contents, threshold, rng)
        others[number, : len(chosen)] = chosen
        for column, other in enumerate(chosen):
            best, where = best_scores(opened(folder, cases[other]), places)
            levels = np.floor(np.clip(best, 0, 1) * LEVELS)
            scores[number, : len(places), column] = levels
            found[number, : len(places), column] = where[:, 0]

    queries, places_of, columns = np.nonzero(scores >= max(1.0, threshold * LEVELS))
    heights = Heights(
        queries,
        others[queries, columns],
        positions[queries, places_of, 0],
        found[queries, places_of, columns],
    )
    axis = find_body_axis(count, heights)

    table = Partners(
        cases=np.array(cases),
        contents=contents,
        positions=positions,
        regions=regions_of(positions, axis),
        others=others,
        scores=scores,
        threshold=threshold,
    )
    return table, axis


def regions_of(positions: np.ndarray, axis: BodyAxis) -> np.ndarray:
    """The slab of the body, REGION mm along its axis, in which each place lies.

    Args:
        positions: (N, M, 3) mm; NaN where there is none.
        axis: Of the scans.

    Returns:
        (N, M) int16; NO_REGION where a scan has no partners.
    """
    heights = positions[..., 0] + axis.offsets[:, None]
    slabs = np.floor(heights / REGION)
    known = np.isfinite(slabs)

    regions = np.full(slabs.shape, NO_REGION, np.int16)
    groups = np.broadcast_to(axis.groups[:, None], slabs.shape)[known]
    _, numbers = np.unique(np.stack([groups, slabs[known]], 1), axis=0, return_inverse=True)
    regions[known] = numbers.ravel()
    return regions
