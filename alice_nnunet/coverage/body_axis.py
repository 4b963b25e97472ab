"""All scans on one axis along the body, from the heights at which they match each other."""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree
from scipy.sparse.linalg import lsqr

COMMON = 4  # matches that link two scans
ROUNDS = 10
TOLERANCE = 10.0  # mm; links that disagree by more count less
UPSIDE_DOWN = -0.5  # correlation of a scan's heights with those of all


@dataclass(frozen=True)
class Heights:
    """The heights of L matches between scans.

    Attributes:
        query: (L,) number of a scan.
        key: (L,) number of another one.
        query_z: (L,) mm, of a place in the first.
        key_z: (L,) mm, of its match in the other.
    """

    query: np.ndarray
    key: np.ndarray
    query_z: np.ndarray
    key_z: np.ndarray


@dataclass(frozen=True)
class BodyAxis:
    """Where N scans lie along the body.

    Scans that match each other, be it by way of others, are one group and lie on one axis. Those of
    different groups cannot be compared.

    Attributes:
        groups: (N,) int, numbered from the largest; -1 for scans without partners.
        offsets: (N,) mm. Height z of a scan is z + offset on the axis of its group, which starts
            near 0. NaN for -1.
        agreement: (N,) correlation of the heights of a scan's places with those of their matches on
            the axis: near 1; negative where it is upside down; NaN where it has too few.
    """

    groups: np.ndarray
    offsets: np.ndarray
    agreement: np.ndarray

    @property
    def upside_down(self) -> np.ndarray:
        """(N,) bool."""
        return np.nan_to_num(self.agreement) < UPSIDE_DOWN


def find_body_axis(count: int, heights: Heights) -> BodyAxis:
    """Place scans by their matches: two scans that match differ by an offset alone.

    Medians of the matches of two scans, and weights that fall with the disagreement of a link,
    leave false matches without effect.

    Args:
        count: N.
        heights: Of the matches.
    """
    query, key, apart, strength = links_between(heights)
    graph = sparse.coo_matrix((1 / strength, (query, key)), (count, count)).tocsr()
    parts, labels = connected_components(graph, directed=False)

    sizes = np.bincount(labels, minlength=parts)
    order = np.argsort(-sizes, kind="stable")
    rank = np.full(parts, -1)
    several = sizes[order] > 1
    rank[order[several]] = np.arange(several.sum())
    groups = rank[labels]

    offsets = along_tree(graph, query, key, apart, groups)
    offsets = refined(offsets, query, key, apart, strength)
    for group in range(groups.max(initial=-1) + 1):
        offsets[groups == group] -= np.median(offsets[groups == group])
    offsets[groups < 0] = np.nan

    agreement = np.full(count, np.nan)
    on_axis = heights.key_z + offsets[heights.key]
    for scan in np.unique(heights.query):
        own = heights.query == scan
        agreement[scan] = correlation(heights.query_z[own], on_axis[own])
    return BodyAxis(groups, offsets, agreement)


def links_between(heights: Heights) -> tuple[np.ndarray, ...]:
    """Scans that are linked by COMMON matches or more.

    Returns:
        query, key: (E,) numbers of scans.
        apart: (E,) mm, offset of the query less that of the key.
        strength: (E,) number of matches.
    """
    order = np.lexsort((heights.key, heights.query))
    query = heights.query[order]
    key = heights.key[order]
    apart = (heights.key_z - heights.query_z)[order]

    starts = np.flatnonzero(np.diff(query, prepend=-1) | np.diff(key, prepend=-1))
    sizes = np.diff(starts, append=len(query))
    strong = sizes >= COMMON
    medians = [
        np.median(apart[start : start + size]) for start, size in zip(starts[strong], sizes[strong])
    ]
    first = starts[strong]
    return query[first], key[first], np.array(medians), sizes[strong].astype(float)


def along_tree(
    graph: sparse.csr_matrix,
    query: np.ndarray,
    key: np.ndarray,
    apart: np.ndarray,
    groups: np.ndarray,
) -> np.ndarray:
    """Offsets by the strongest links alone, outwards from one scan of each group."""
    difference = {}
    for q, k, a in zip(query.tolist(), key.tolist(), apart.tolist()):
        difference[q, k] = a
        difference.setdefault((k, q), -a)

    offsets = np.zeros(len(groups))
    tree = minimum_spanning_tree(graph.minimum(graph.T) + graph.maximum(graph.T))
    for group in range(groups.max(initial=-1) + 1):
        first = int(np.flatnonzero(groups == group)[0])
        order, before = breadth_first_order(tree, first, directed=False)
        for scan in order[1:]:
            parent = before[scan]
            offsets[scan] = offsets[parent] + difference[int(scan), int(parent)]
    return offsets


def refined(
    offsets: np.ndarray,
    query: np.ndarray,
    key: np.ndarray,
    apart: np.ndarray,
    strength: np.ndarray,
) -> np.ndarray:
    """Offsets by all links: least absolute disagreement, as reweighted least squares."""
    links = len(query)
    if not links:
        return offsets

    rows = np.arange(links)
    for _ in range(ROUNDS):
        error = apart - (offsets[query] - offsets[key])
        weight = np.sqrt(strength / np.maximum(np.abs(error), TOLERANCE))
        values = np.concatenate([weight, -weight])
        places = (np.concatenate([rows, rows]), np.concatenate([query, key]))
        matrix = sparse.coo_matrix((values, places), (links, len(offsets))).tocsr()
        offsets = offsets + lsqr(matrix, weight * error)[0]
    return offsets


def correlation(heights: np.ndarray, on_axis: np.ndarray) -> float:
    """Of heights in a scan and on the axis; NaN of fewer than 2 COMMON."""
    known = np.isfinite(on_axis)
    if known.sum() < 2 * COMMON:
        return np.nan
    if np.ptp(heights[known]) == 0 or np.ptp(on_axis[known]) == 0:
        return np.nan
    return float(np.corrcoef(heights[known], on_axis[known])[0, 1])
