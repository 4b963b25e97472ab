import numpy as np
import pytest

from alice_nnunet.coverage import partners
from alice_nnunet.coverage.body_axis import BodyAxis
from alice_nnunet.data.partners import LEVELS, NO_REGION
from alice_nnunet.matcher.embedding import BLOCK, Embedding, pack
from alice_nnunet.matcher.index import save_embedding
from alice_nnunet.matcher.learned import match_millimetres

STEP = (10.0, 10.0, 10.0)
STARTS = {
    "low": 0,
    "middle": 12,
    "high": 24,
    "copy": 24,
}  # the first plane of the body that it shows
PLANES = 30


def body(person: int, start: int) -> Embedding:
    """PLANES planes of one body, as a person's own variety of it."""
    rng = np.random.default_rng(99)
    shared = rng.normal(size=(8, 60, 18, 18))
    own = np.random.default_rng(person).normal(size=shared.shape)
    vectors = (shared + 0.5 * own)[:, start : start + PLANES]
    vectors /= np.linalg.norm(vectors, axis=0)
    return pack(vectors.astype(np.float32), (5.0, 5.0, 5.0), STEP)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Three people who show overlapping parts, and one of them again, under another name."""
    folder = tmp_path_factory.mktemp("index")
    known = {case: body(len(case), start) for case, start in STARTS.items()}
    known["copy"] = known["high"]
    for case, embedding in known.items():
        save_embedding(folder, case, embedding, {})
    return folder, known


CONTENTS = np.array([1, 2, 3, 3])


@pytest.fixture(scope="module")
def made(index):
    folder, known = index
    cases = list(known)
    rng = np.random.default_rng(0)
    anchors = partners.draw_anchors(folder, cases, rng)
    signatures = partners.find_anchors(folder, cases, anchors)
    return partners.make_partners(folder, cases, CONTENTS, signatures, 0.5, rng)


def test_the_table_is_what_a_search_of_every_other_person_finds(index, made):
    _, known = index
    table, *_ = made
    cases = list(known)

    for row, case in enumerate(cases):
        others = [other for other in table.others[row] if other >= 0]
        assert others == [n for n in range(4) if CONTENTS[n] != CONTENTS[row]]
        for place in range(0, partners.PLACES, 16):
            for column, other in enumerate(others):
                position = table.positions[row, place].astype(float)
                found, score = match_millimetres(position, known[case], known[cases[other]])
                level = table.scores[row, place, column] / LEVELS
                assert level <= score + 1e-4

                # The same place, BLOCK nodes higher or lower: it is found, and by its middle.
                apart = STEP[0] * (STARTS[case] - STARTS[cases[other]])
                height = position[0] + apart
                if 60 < height < 10 * PLANES - 60 and 60 < position[0] < 10 * PLANES - 60:
                    assert level >= score - 1 / LEVELS - 1e-4 and score > 0.5
                    assert found[0] == pytest.approx(height)


def test_scans_lie_on_the_body_axis_where_they_were_cut_out(made):
    _, axis, _ = made
    assert axis.groups.tolist() == [0] * 4
    expected = 10.0 * np.array(list(STARTS.values()))
    apart = axis.offsets - expected
    assert np.ptp(apart) < BLOCK * STEP[0]


def test_false_matches_are_found_where_nothing_is_the_place(index):
    folder, known = index
    scores = partners.calibrate(folder, list(known), np.random.default_rng(0))
    assert (np.diff(scores) >= 0).all() and scores.max() < 0.6

    threshold = partners.threshold_of(scores, 0.7)
    assert (scores >= threshold).mean() == pytest.approx(partners.FALSE_MATCHES, abs=0.01)
    assert partners.threshold_of(scores[:10], 0.7) == 0.7


def test_of_many_scans_those_with_common_anchors_are_compared():
    rng = np.random.default_rng(0)
    count = 500
    kind = rng.integers(0, 5, count)
    shown = np.where(np.arange(partners.ANCHORS) % 5 == kind[:, None], 0.9, 0.1)
    signatures = partners.Signatures(shown, np.zeros((*shown.shape, 3)))
    contents = np.arange(count)
    contents[1] = contents[0]

    drawn = [partners.choose_others(n, signatures, contents, 0.6, rng) for n in range(count)]
    for number, others in enumerate(drawn):
        assert len(others) == len(set(others)) == partners.OTHERS
        assert number not in others and (kind[others] == kind[number]).all()
    assert 1 not in drawn[0]
    times = np.bincount(np.concatenate(drawn), minlength=count)
    assert (times > 0).mean() > 0.95  # not the same few for all


def test_a_scan_that_shows_something_else_than_all_is_compared_all_the_same():
    shown = np.full((100, partners.ANCHORS), 0.1)
    signatures = partners.Signatures(shown, np.zeros((*shown.shape, 3)))
    rng = np.random.default_rng(0)
    others = partners.choose_others(3, signatures, np.arange(100), 0.6, rng)
    assert len(others) == partners.OTHERS


def test_regions_are_slabs_of_the_body():
    positions = np.zeros((3, 4, 3), np.float32)
    positions[..., 0] = [[0, 50, 150, np.nan], [0, 50, 150, 250], [0, 50, 150, 250]]
    axis = BodyAxis(np.array([0, 0, -1]), np.array([0.0, 100.0, np.nan]), np.zeros(3))
    regions = partners.regions_of(positions, axis)
    assert regions[0, 0] == regions[0, 1] != regions[0, 2] == regions[1, 0]
    assert regions[0, 3] == NO_REGION and (regions[2] == NO_REGION).all()
    assert regions[1].tolist() == [1, 1, 2, 3]
