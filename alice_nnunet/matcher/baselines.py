"""Matchers that learn nothing: the baselines for the learned one."""

import numpy as np

from alice_nnunet.data.match import Match
from alice_nnunet.data.volumes import Volume
from alice_nnunet.geometry import Triple, triple


def match_by_body(point: Triple, query: Volume, key: Volume) -> Match:
    """The same position relative to the box around the body.

    The matcher does not know what is in view: the score is 1 where the match lies in the body of
    key, else 0.
    """
    query_start, query_stop = np.array(query.body.box)
    key_start, key_stop = np.array(key.body.box)

    share = (np.array(point) + 0.5 - query_start) / (query_stop - query_start)
    place = np.floor(key_start + share * (key_stop - key_start))
    match = triple(int(i) for i in place)
    return Match(match, float(key.body.contains(match)))


def match_same(point: Triple, query: Volume, key: Volume) -> Match:
    """The point itself, for pairs of a volume with itself."""
    return Match(point, 1.0)
