"""The simple matcher: the same position relative to the box around the body. The baseline for every learned one."""

import numpy as np

from alice_nnunet.data.volumes import Volume
from alice_nnunet.geometry import Triple
from alice_nnunet.data.match import Match


def match_by_body(point: Triple, query: Volume, key: Volume) -> Match:
    """The voxel of key at the same share of its body's box. point: voxel (z, y, x) of query.

    It knows nothing of what is in view; its score is 1 where the match lies in the body of key, else 0.
    """
    (q_start, q_stop), (k_start, k_stop) = np.asarray(query.body.box), np.asarray(key.body.box)
    share = (np.asarray(point) + 0.5 - q_start) / (q_stop - q_start)
    match = tuple(int(i) for i in np.floor(k_start + share * (k_stop - k_start)))
    return Match(match, float(key.body.contains(match)))
