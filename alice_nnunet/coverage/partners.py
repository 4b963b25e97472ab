"""What each scan of an index shows, and which others show it too.

Everything is near-linear in the number of scans: each is compared with a fixed number of anchors,
places of other scans, and then with a fixed number of scans that match the same anchors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alice_nnunet.coverage.body_axis import BodyAxis, Heights, find_body_axis
from alice_nnunet.coverage.sides import (
    GREAT_DOUBT,
    LEFT_RIGHT,
    UPSIDE_DOWN,
    Flipped,
    Sides,
    find_sides,
)
from alice_nnunet.coverage.surroundings import (
    Surroundings,
    best_scores,
    joined,
    random_surroundings,
)
from alice_nnunet.data.partners import LEVELS, NO_REGION, Partners
from alice_nnunet.matcher.embedding import Embedding
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

TURNED_EVERY = 3  # of the places: enough to see whether a scan is upside down
NEARLY = 0.1  # under the threshold: an anchor that is nearly matched tells something, too


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

    shown = evidence(signatures.scores[number], threshold)
    shown_there = evidence(signatures.scores[pool], threshold)
    common = np.minimum(shown, shown_there).sum(1)

    best = np.argsort(-common, kind="stable")[: 2 * OTHERS]
    likely = best[common[best] > 0]
    if len(likely) < OTHERS:
        likely = best[:OTHERS]
    return np.sort(pool[rng.permutation(likely)[:OTHERS]])


def evidence(scores: np.ndarray, threshold: float) -> np.ndarray:
    """How much scores tell of a scan showing the same: what they exceed a near miss by."""
    return np.maximum(scores - (threshold - NEARLY), 0)


def gain(key: Embedding, scores: np.ndarray, flipped: Surroundings, threshold: float) -> float:
    """How much better a key shows places as they are, with these scores, than flipped."""
    others, _ = best_scores(key, flipped)
    return float(evidence(scores, threshold).sum() - evidence(others, threshold).sum())


def make_partners(
    folder: Path,
    cases: Sequence[str],
    contents: np.ndarray,
    signatures: Signatures,
    threshold: float,
    rng: np.random.Generator,
    flipped: Callable[[str, tuple[int, ...]], Flipped] | None = None,
) -> tuple[Partners, BodyAxis, Sides]:
    """Compare places of every scan with the scans that may show them.

    A scan that another one shows better when it is mirrored does not match it: one of them has left
    and right exchanged, they are opposite limbs, or they resemble each other by chance, of which
    mirrored places have as much. Neither does one that is upside down.

    Args:
        folder: The index.
        cases: Scans in it.
        contents: (N,) their checksums.
        signatures: Of these scans.
        threshold: Score of a match.
        rng: Source of random numbers.
        flipped: Gives a scan with some axes reversed. None: not checked.

    Returns:
        table: Which scans show the same places.
        axis: The scans on one axis along the body.
        sides: Which way round the scans lie.
    """
    count = len(cases)
    positions = np.full((count, PLACES, 3), np.nan, np.float32)
    others = np.full((count, OTHERS), -1, np.int32)
    scores = np.zeros((count, PLACES, OTHERS), np.uint8)
    found = np.full((count, PLACES, OTHERS), np.nan, np.float32)  # mm, heights
    over_mirrored = np.ones((count, OTHERS))  # gain of evidence over the mirrored scan
    over_turned = np.ones((count, OTHERS))  # and over the one that is upside down

    numbered = ((case, number) for number, case in enumerate(cases))
    for case, number in with_progress(numbered, "finding partners of", count):
        places = random_surroundings(opened(folder, case), PLACES, rng)
        positions[number, : len(places)] = places.positions

        if flipped:
            few = places.every(TURNED_EVERY)
            mirrored_places = flipped(case, LEFT_RIGHT).surroundings(places)
            turned_places = flipped(case, UPSIDE_DOWN).surroundings(few)

        chosen = choose_others(number, signatures, contents, threshold, rng)
        others[number, : len(chosen)] = chosen
        for column, other in enumerate(chosen):
            key = opened(folder, cases[other])
            best, where = best_scores(key, places)
            if flipped:
                over_mirrored[number, column] = gain(key, best, mirrored_places, threshold)
                over_turned[number, column] = gain(
                    key, best[::TURNED_EVERY], turned_places, threshold
                )
            levels = np.floor(np.clip(best, 0, 1) * LEVELS)
            scores[number, : len(places), column] = levels
            found[number, : len(places), column] = where[:, 0]

    sides = Sides(find_sides(over_mirrored, others), find_sides(over_turned, others, GREAT_DOUBT))
    differ = sides.differ(others) | (over_mirrored <= 0)
    scores[np.broadcast_to(differ[:, None], scores.shape)] = 0

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
    return table, axis, sides


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
