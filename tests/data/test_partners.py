import numpy as np
import pytest

from alice_nnunet.data.partners import LEVELS, Partners
from alice_nnunet.errors import UserError

N, M, K = 9, 7, 4


def table(seed: int = 0) -> Partners:
    """Random scores; scans 2 and 5 are the same one, and some places and others are missing."""
    rng = np.random.default_rng(seed)
    others = np.array([rng.permutation([k for k in range(N) if k != n])[:K] for n in range(N)])
    others[3, 2:] = -1
    scores = rng.integers(0, LEVELS + 1, (N, M, K)).astype(np.uint8)
    scores[3, :, 2:] = 0
    scores[8] = 0  # matches nobody
    positions = rng.uniform(0, 300, (N, M, 3)).astype(np.float32)
    positions[4, 5:] = np.nan
    scores[4, 5:] = 0
    contents = np.arange(100, 100 + N)
    contents[5] = contents[2]
    others[2, 0] = 5
    scores[2, 0, 0] = LEVELS
    return Partners(
        cases=np.array([f"c{n}" for n in range(N)]),
        contents=contents,
        positions=positions,
        regions=rng.integers(-1, 3, (N, M)).astype(np.int16),
        others=others.astype(np.int32),
        scores=scores,
        threshold=0.6,
    )


def partners_by_hand(known: Partners, query: int, place: int, keys: list[str], least: float) -> set:
    found = set()
    for column in range(K):
        other = known.others[query, column]
        if other < 0 or known.contents[other] == known.contents[query]:
            continue
        if known.scores[query, place, column] / LEVELS >= least and f"c{other}" in keys:
            found.add(f"c{other}")
    return found


@pytest.mark.parametrize("least", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("keys", [[f"c{n}" for n in range(N)], ["c1", "c5", "c6", "elsewhere"]])
def test_keys_are_those_that_match_by_all_rules(least, keys):
    known = table()
    queries = ["c0", "c2", "c3", "c4", "c8"]
    eligible = known.eligible(queries, keys, least)
    rng = np.random.default_rng(0)

    for query in range(N):
        for place in range(M):
            # A score of 0 is none, whatever the minimum.
            expected = partners_by_hand(known, query, place, keys, max(least, 1 / LEVELS))
            drawn = eligible.keys_at(query, place, rng)
            assert len(drawn) == len(set(drawn)) and set(drawn) == expected
            assert eligible.has_key[query, place] == bool(expected)

    with_partner = [
        query
        for query in (0, 2, 3, 4, 8)
        if any(partners_by_hand(known, query, p, keys, max(least, 1 / LEVELS)) for p in range(M))
    ]
    assert eligible.rows.tolist() == with_partner


def test_queries_and_keys_come_evenly():
    eligible = table().eligible([f"c{n}" for n in range(N)], [f"c{n}" for n in range(N)], 0.1)
    rng = np.random.default_rng(0)
    drawn = np.bincount([eligible.draw_query(rng) for _ in range(8000)], minlength=N)
    assert drawn[8] == 0 and np.abs(drawn[:8] - 1000).max() < 150

    first = [eligible.keys_at(0, 0, rng)[0] for _ in range(3000)]
    kinds, counts = np.unique(first, return_counts=True)
    assert np.abs(counts - 3000 / len(kinds)).max() < 200


def test_regions_come_evenly_and_places_are_theirs():
    known = table()
    cases = [f"c{n}" for n in range(N)]
    eligible = known.eligible(cases, cases, 0.5)
    rng = np.random.default_rng(0)
    regions = []
    for _ in range(4000):
        row, place = eligible.draw_query_of_region(rng)
        assert eligible.has_key[row, place]
        regions.append(known.regions[row, place])
    _, counts = np.unique(regions, return_counts=True)
    assert len(counts) == 4 and np.abs(counts - 1000).max() < 150


def test_the_nearest_place_is_one_that_exists():
    known = table()
    eligible = known.eligible(["c4"], ["c0"], 0.1)
    rng = np.random.default_rng(1)
    for _ in range(50):
        point = rng.uniform(0, 300, 3)
        distances = np.linalg.norm(known.positions[4, :5] - point, axis=1)
        assert eligible.nearest_place(4, point) == distances.argmin()


def test_a_table_is_saved_and_a_damaged_one_named(tmp_path):
    known = table()
    path = tmp_path / "partners.npz"
    known.save(path)
    read = Partners.load(path)
    for name, value in vars(known).items():
        assert np.array_equal(getattr(read, name), value, equal_nan=name == "positions"), name

    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"partners.npz is missing or damaged .*alice-embed"):
        Partners.load(path)
