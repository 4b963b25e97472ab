"""The index of a dataset: the vectors of every volume, by the trained matcher."""

from pathlib import Path

import numpy as np
import torch

from alice_nnunet.coverage.sides import Flipped
from alice_nnunet.data.volumes import case_names, case_properties, flip_volume, open_volume
from alice_nnunet.errors import UserError
from alice_nnunet.files import file_sha256
from alice_nnunet.matcher.embed import embed_volume
from alice_nnunet.matcher.index import is_whole, save_embedding
from alice_nnunet.matcher.weights import load_network
from alice_nnunet.names import FINAL
from alice_nnunet.pretrain.embedding.coverage import update_coverage
from alice_nnunet.workers import with_progress


def index_volumes(volumes: Path, folder: Path, device: torch.device, read_all: bool = True) -> None:
    """Index every volume that has no vectors by these weights, or damaged ones.

    Args:
        volumes: Folder of the preprocessed cases.
        folder: Of the matcher, for the index too.
        device: Where the network runs.
        read_all: Find damaged vectors by their checksum, which reads them all.

    Raises:
        UserError: A volume could not be read; the others are indexed.
    """
    network, config = load_network(folder)
    network.to(device)
    weights = file_sha256(folder / FINAL)

    cases = case_names(volumes)
    failed = {}
    made = 0

    for case, _ in with_progress([(case, None) for case in cases], "indexing", len(cases)):
        try:
            volume_crc32 = case_properties(volumes, case)["alice"]["crc32"]
            made_from = {"weights": weights, "volume": volume_crc32}
            if is_whole(folder, case, made_from, read_all):
                continue

            volume = open_volume(volumes, case)
            vectors = embed_volume(network, volume, config["voxel"], config["step"], device)
            save_embedding(folder, case, vectors, made_from)
            made += 1
        except UserError as error:
            failed[case] = str(error)

    indexed = len(cases) - len(failed)
    print(f"{indexed} of {len(cases)} volumes are indexed ({made} new) in {folder}", flush=True)

    indexed_cases = [case for case in cases if case not in failed]
    if indexed_cases:

        def flipped(case: str, axes: tuple[int, ...]) -> Flipped:
            """A case with some axes reversed, in memory alone."""
            volume = flip_volume(open_volume(volumes, case), axes)
            vectors = embed_volume(network, volume, config["voxel"], config["step"], device)
            extent = np.array(volume.body.size) * volume.spacing
            return Flipped(vectors, extent, axes)

        update_coverage(volumes, folder, indexed_cases, flipped)

    if failed:
        reasons = "; ".join(f"{case}: {reason}" for case, reason in failed.items())
        raise UserError(f"{len(failed)} volumes could not be indexed: {reasons}")
