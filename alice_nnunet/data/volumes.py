"""Preprocessed cases on the disk: CASE.b2nd is the image; CASE.pkl is what is known of it, written last."""

import os
import pickle
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import blosc2
import numpy as np

from alice_nnunet.data.body import Body
from alice_nnunet.errors import UserError
from alice_nnunet.files import sync

PARTIAL = ".partial_"    # folders of cases that are being written
BLOCK_BYTES = 64 * 1024  # what is decompressed together: a crop reads whole blocks, so smaller ones read less around it


@dataclass(frozen=True)
class Volume:
    """One preprocessed case. image: (C, Z, Y, X) float32, read from the disk when sliced. spacing: mm, (z, y, x)."""
    name: str
    image: "StoredImage | np.ndarray"
    spacing: tuple[float, float, float]
    body: Body


class StoredImage:
    """A (C, Z, Y, X) image in a file; slicing reads the blocks that are needed and nothing else."""

    def __init__(self, path: Path):
        """Raises UserError where the file is no image."""
        self.path = path
        on_windows = os.name == "nt"  # blosc2 has no memory map there
        with reading(path):
            self.array = blosc2.open(str(path), mode="r", dparams={"nthreads": 1},
                                     mmap_mode=None if on_windows else "r")
            self.shape, self.dtype = self.array.shape, self.array.dtype

    def __getitem__(self, index) -> np.ndarray:
        with reading(self.path):
            return self.array[index]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong while path is read inside the block becomes a UserError with the file and the remedy."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): "
                        f"run alice-preprocess -d {path.parent.parent.name} --verify") from error


def case_names(folder: Path) -> list[str]:
    """The complete cases of a folder of preprocessed data, sorted; none where there is no such folder."""
    files = {path.name for path in Path(folder).glob("*")}
    return sorted(name[:-4] for name in files if name.endswith(".pkl") and name[:-4] + ".b2nd" in files)


def case_properties(folder: Path, case: str) -> dict:
    """nnU-Net's properties of a case, and under 'alice' what save_volume asks for. Raises UserError."""
    path = Path(folder) / f"{case}.pkl"
    with reading(path):
        properties = pickle.loads(path.read_bytes())
        properties["alice"]["body"], properties["alice"]["crc32"]
    return properties


def open_volume(folder: Path, case: str) -> Volume:
    """Open one case; its image stays on the disk. Raises UserError that names the file where it is damaged."""
    known = case_properties(folder, case)["alice"]
    image = StoredImage(Path(folder) / f"{case}.b2nd")
    return Volume(case, image, tuple(known["spacing"]), Body.from_dict(known["body"]))


def check_volume(folder: Path, case: str) -> str | None:
    """Read all of a case. Returns what is wrong with it, None if nothing is."""
    try:
        image = open_volume(folder, case).image[:]
        known = case_properties(folder, case)["alice"]
    except UserError as error:
        return f"cannot be read: {error.__cause__}"
    if zlib.crc32(np.ascontiguousarray(image)) != known["crc32"]:
        return f"{case}.b2nd does not match its checksum"
    return None


def save_volume(folder: Path, case: str, image: np.ndarray, properties: dict,
                patch_size: tuple[int, int, int]) -> None:
    """Write one case with nnU-Net's own code, complete or not at all.

    image: (C, Z, Y, X) float32. properties: nnU-Net's, with properties['alice'] = {'spacing': mm of image (z, y, x),
    'body': Body.to_dict(), 'plans_sha256': str}; the checksum is added here. patch_size: the crops that will be read,
    in voxels (z, y, x); the blocks in the file fit them.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    folder = Path(folder)
    image = np.ascontiguousarray(image, np.float32)
    properties["alice"]["crc32"] = zlib.crc32(image)
    blocks, chunks = comp_blosc2_params(image.shape, patch_size, image.itemsize, max_block_nbytes=BLOCK_BYTES)
    no_labels = np.zeros((1, 1, 1, 1), np.int8)  # nnU-Net writes a segmentation; it stays behind in the partial folder
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    try:
        nnUNetDatasetBlosc2.save_case(image, no_labels, properties, str(partial / case), chunks=chunks, blocks=blocks,
                                      chunks_seg=no_labels.shape, blocks_seg=no_labels.shape)
        (folder / f"{case}.pkl").unlink(missing_ok=True)
        for ending in ("b2nd", "pkl"):
            sync(partial / f"{case}.{ending}")
            os.replace(partial / f"{case}.{ending}", folder / f"{case}.{ending}")
        sync(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partial(folder: Path) -> None:
    """Remove what a killed save_volume left behind. Not for a folder that another process is writing to."""
    for partial in Path(folder).glob(PARTIAL + "*"):
        shutil.rmtree(partial, ignore_errors=True)
