"""The index of a dataset: a folder with the embeddings of all its volumes.

CASE.npy holds the vectors and is memory-mapped. CASE.json describes them and is written last. Other
files of the folder have names of their own (see stem_of).
"""

import json
from pathlib import Path

import numpy as np
from isal.isal_zlib import crc32

from alice_nnunet.errors import UserError
from alice_nnunet.files import replacing, write_json_atomically
from alice_nnunet.matcher.embedding import NODES, Embedding
from alice_nnunet.names import COVERAGE, COVERAGE_PICTURE, EMBED_CONFIG, PARTNERS

TAKEN = {Path(name).stem for name in (COVERAGE, COVERAGE_PICTURE, EMBED_CONFIG, PARTNERS)}
CASE_ENDING = ".case"  # of the files of a case that is named like one of these


def stem_of(case: str) -> str:
    """The name of a case's files, which no other file of the folder and no other case has."""
    root = case
    while root.endswith(CASE_ENDING):
        root = root.removesuffix(CASE_ENDING)
    return f"{case}{CASE_ENDING}" if root.lower() in TAKEN else case


def save_embedding(folder: Path, case: str, embedding: Embedding, made_from: dict) -> None:
    """Write the embedding of one case, completely or not at all.

    Args:
        folder: the index.
        case: its name.
        embedding: what to write.
        made_from: checksums of the weights and of the volume.
    """
    channels = embedding.middles.shape[1]
    values = np.concatenate([embedding.middles, embedding.blocks.reshape(-1, channels)])
    values = np.ascontiguousarray(values)  # a body of one block comes in another memory layout

    # Without its .json the old embedding does not count.
    stem = stem_of(case)
    (folder / f"{stem}.json").unlink(missing_ok=True)
    with replacing(folder / f"{stem}.npy") as partial, partial.open("wb") as file:
        np.save(file, values)

    description = {
        "grid": embedding.grid,
        "origin": embedding.origin,
        "step": embedding.step,
        "scale": embedding.scale,
        "crc32": crc32(values),
        "made_from": made_from,
    }
    write_json_atomically(folder / f"{stem}.json", description)


def open_embedding(folder: Path, case: str) -> Embedding:
    """Open the embedding of one case; its vectors stay on the disk.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        description, values = open_files(folder, case)
        grid = tuple(description["grid"])
        blocks = int(np.prod(grid))

        return Embedding(
            middles=values[:blocks],
            blocks=values[blocks:].reshape(blocks, NODES, values.shape[1]),
            grid=grid,
            origin=tuple(description["origin"]),
            step=tuple(description["step"]),
            scale=description["scale"],
        )
    except Exception as error:  # numpy raises many types for a damaged header
        raise UserError(
            f"the embedding of {case} in {folder} is missing or damaged "
            f"({type(error).__name__}: {error}): run alice-embed -d {folder.parent.name}"
        ) from None


def is_whole(folder: Path, case: str, made_from: dict, read_all: bool = True) -> bool:
    """Whether the embedding of a case is undamaged and was made from made_from.

    Args:
        folder: the index.
        case: its name.
        made_from: checksums of the weights and of the volume.
        read_all: also read all vectors and compare their checksum.
    """
    try:
        description, values = open_files(folder, case)
        if description["made_from"] != made_from:
            return False
        return not read_all or crc32(np.ascontiguousarray(values)) == description["crc32"]
    except Exception:  # as in open_embedding
        return False


def open_files(folder: Path, case: str) -> tuple[dict, np.ndarray]:
    """The description of an embedding, and its vectors (28 A, C): middles, then whole blocks."""
    stem = stem_of(case)
    description = json.loads((folder / f"{stem}.json").read_text())
    values = np.load(folder / f"{stem}.npy", mmap_mode="r")
    return description, values
