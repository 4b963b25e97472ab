import numpy as np

from alice_nnunet.coverage.body_axis import Heights, find_body_axis


def matches(rng, offsets, extents, number=40, false=0.1, noise=8.0) -> Heights:
    """Places of every scan and their matches in every other; some are found anywhere.

    Scan i shows extents[i] of the body; its own heights are lower by offsets[i].
    """
    query, key, query_z, key_z = [], [], [], []
    for q, (low, high) in enumerate(extents):
        places = rng.uniform(low, high, number)
        for k, (first, last) in enumerate(extents):
            shown = places[(places >= first) & (places < last)]
            if k == q or not len(shown):
                continue
            found = shown + noise * rng.normal(size=len(shown))
            wrong = rng.random(len(shown)) < false
            found[wrong] = rng.uniform(first, last, wrong.sum())
            query += [q] * len(shown)
            key += [k] * len(shown)
            query_z.append(shown - offsets[q])
            key_z.append(found - offsets[k])
    return Heights(np.array(query), np.array(key), np.concatenate(query_z), np.concatenate(key_z))


def test_scans_that_match_by_way_of_others_come_onto_one_axis():
    rng = np.random.default_rng(0)
    offsets = rng.uniform(-500, 500, 30)
    starts = np.append(rng.uniform(0, 700, 28), [0, 700])
    found = find_body_axis(30, matches(rng, offsets, [(s, s + 300) for s in starts]))

    assert (found.groups == 0).all()
    apart = found.offsets - offsets
    assert np.abs(apart - np.median(apart)).max() < 10
    assert not found.upside_down.any() and found.agreement.min() > 0.7


def test_what_matches_nothing_in_common_is_another_group_or_none():
    rng = np.random.default_rng(1)
    extents = [(600, 900)] * 3 + [(0, 300)] * 5 + [(400, 500)]
    found = find_body_axis(9, matches(rng, rng.uniform(-50, 50, 9), extents, false=0))
    assert found.groups.tolist() == [1] * 3 + [0] * 5 + [-1]
    assert np.isnan(found.offsets).tolist() == [False] * 8 + [True]


def test_a_scan_that_is_upside_down_is_seen():
    rng = np.random.default_rng(2)
    heights = matches(rng, np.zeros(8), [(0, 400)] * 8)
    heights.query_z[heights.query == 3] = 400 - heights.query_z[heights.query == 3]
    heights.key_z[heights.key == 3] = 400 - heights.key_z[heights.key == 3]
    assert find_body_axis(8, heights).upside_down.tolist() == [scan == 3 for scan in range(8)]


def test_no_match_at_all_is_no_error():
    nothing = np.zeros(0, int)
    found = find_body_axis(3, Heights(nothing, nothing, nothing * 1.0, nothing * 1.0))
    assert found.groups.tolist() == [-1] * 3 and np.isnan(found.offsets).all()
