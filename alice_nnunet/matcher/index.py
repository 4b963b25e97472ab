"""Embeddings on the disk: CASE.npy is memory-mapped, CASE.json is written last and says what is in it."""

import json
from pathlib import Path

import numpy as np
from isal.isal_zlib import crc32

from alice_nnunet.errors import UserError
from alice_nnunet.files import replacing, write_json_atomically
from alice_nnunet.matcher.embedding import BLOCK, Embedding

GEOMETRY = ("grid", "origin", "step", "scale")


def save_embedding(folder: Path, case: str, embedding: Embedding, made_from: dict) -> None:
    """Write one case, complete or not at all. made_from: checksums of the weights and of the volume."""
    values = np.concatenate(
        [embedding.middles, embedding.blocks.reshape(-1, embedding.middles.shape[1])]
    )
    (folder / f"{case}.json").unlink(missing_ok=True)
    with replacing(folder / f"{case}.npy") as partial, open(partial, "wb") as file:
        np.save(file, values)
    write_json_atomically(
        folder / f"{case}.json",
        {
            **{name: getattr(embedding, name) for name in GEOMETRY},
            "crc32": crc32(values),
            "made_from": made_from,
        },
    )


def open_embedding(folder: Path, case: str) -> Embedding:
    """One case, its vectors left on the disk. Raises UserError where it is missing or was cut off."""
    try:
        known = json.loads((folder / f"{case}.json").read_text())
        values = np.load(folder / f"{case}.npy", mmap_mode="r")
        blocks = int(np.prod(known["grid"]))
        middles, rest = values[:blocks], values[blocks:].reshape(blocks, BLOCK**3, values.shape[1])
        return Embedding(
            middles,
            rest,
            *(tuple(v) if isinstance(v, list) else v for v in (known[name] for name in GEOMETRY)),
        )
    except Exception as error:  # numpy raises whatever a damaged header makes it stumble on
        raise UserError(
            f"the embedding of {case} in {folder} is missing or damaged ({type(error).__name__}: {error}): "
            f"run alice-embed -d {folder.parent.name}"
        ) from None


def is_whole(folder: Path, case: str, made_from: dict, read_all: bool = True) -> bool:
    """Whether the embedding of a case was made from these weights and this volume; with read_all, its checksum is checked."""
    try:
        known = json.loads((folder / f"{case}.json").read_text())
        values = np.load(folder / f"{case}.npy", mmap_mode="r")
        return known["made_from"] == made_from and (
            not read_all or crc32(np.ascontiguousarray(values)) == known["crc32"]
        )
    except Exception:  # as above
        return False
