"""Preprocessed cases on the disk: CASE.b2nd is the image; CASE.pkl is what is known of it, written last."""

import itertools
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import blosc2
import numpy as np
from isal.isal_zlib import crc32  # zlib's, several times faster

from alice_nnunet.data.body import Body
from alice_nnunet.errors import UserError
from alice_nnunet.files import sync

PARTIAL = ".partial_"  # folders of cases that are being written
BLOCK_BYTES = (
    16 * 1024
)  # what is decompressed together: a crop reads whole blocks, so smaller ones read less around it
CHUNK_BYTES = 256 * 1024  # what is checked together when it is first read, before compression
CHECKED_FILES = 4096  # of which a process remembers what it has checked


@dataclass(frozen=True)
class Volume:
    """One preprocessed case. image: (C, Z, Y, X) float32, opened when its shape is asked for, read from the disk when sliced. spacing: mm, (z, y, x)."""

    name: str
    image: "StoredImage | np.ndarray"
    spacing: tuple[float, float, float]
    body: Body


class StoredImage:
    """A (C, Z, Y, X) image in a file; slicing reads the blocks that are needed and nothing else.

    checksums: CRC-32 of each compressed chunk of the file. A process checks a chunk when it first reads from it, and again
    when the file has changed since.
    """

    def __init__(self, path: Path, checksums: Sequence[int]):
        self.path, self.checksums = path, checksums

    @cached_property
    def array(self) -> blosc2.NDArray:
        """The file, opened when it is first asked for: of most pairs that are drawn nothing is read. Raises UserError where it is no image."""
        on_windows = os.name == "nt"  # blosc2 has no memory map there
        with reading(self.path):
            return blosc2.open(
                str(self.path),
                mode="r",
                dparams={"nthreads": 1},
                mmap_mode=None if on_windows else "r",
            )

    @cached_property
    def checked(self) -> set[int]:
        """Numbers of the chunks that this process has found to be what was saved."""
        with reading(self.path):
            found = self.path.stat()
        return checked_chunks(self.path, (found.st_mtime_ns, found.st_size, found.st_ino))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def __getitem__(self, index) -> np.ndarray:
        """index: slices and numbers, as of an array. Raises UserError where what is read is not what was saved."""
        with reading(self.path):
            self.check(self.bounds(index))
            return self.array[index]

    def read_into(self, out: np.ndarray, index: tuple[slice, ...]) -> None:
        """What self[index] is, straight into a contiguous array of its shape and type; index: slices of step 1, one for each axis.
        Raises UserError as [] does."""
        bounds = self.bounds(index)
        if (
            out.shape != tuple(stop - start for start, stop in bounds)
            or out.dtype != self.dtype
            or not out.flags.c_contiguous
        ):
            raise ValueError(
                f"{bounds} of {self.dtype} do not go into a {out.dtype} array of shape {out.shape} and strides {out.strides}"
            )
        with reading(self.path):
            self.check(bounds)
            self.array.get_slice_numpy(out, tuple(zip(*bounds)))

    def check(self, bounds: list[tuple[int, int]]) -> None:
        """Raise ValueError where the chunks that bounds read from are not what was saved; those checked before are not checked again."""
        for chunk in self.chunks_of(bounds) - self.checked:
            if crc32(self.array.schunk.get_chunk(chunk)) != self.checksums[chunk]:
                raise ValueError("it does not match its checksum")
            self.checked.add(chunk)

    def chunks_of(self, bounds: list[tuple[int, int]]) -> set[int]:
        """Numbers of the chunks that bounds read from."""
        spans = [
            range(start // c, -(-stop // c)) for (start, stop), c in zip(bounds, self.array.chunks)
        ]
        grid = [-(-n // c) for n, c in zip(self.shape, self.array.chunks)]
        return {int(np.ravel_multi_index(place, grid)) for place in itertools.product(*spans)}

    def bounds(self, index) -> list[tuple[int, int]]:
        """The first voxel of index along each axis, and the one after the last."""
        parts = index if isinstance(index, tuple) else (index,)
        parts += (slice(None),) * (len(self.shape) - len(parts))
        return [
            part.indices(n)[:2] if isinstance(part, slice) else (part, part + 1)
            for part, n in zip(parts, self.shape)
        ]


@lru_cache(CHECKED_FILES)
def checked_chunks(path: Path, version: tuple) -> set[int]:
    """The chunks of a version of a file that this process has found to be what was saved; to be added to."""
    return set()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong while path is read inside the block becomes a UserError with the file and the remedy."""
    try:
        yield
    except UserError:
        raise  # it says already which file and what to do
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is gone: put it back, or run alice-preprocess -d {path.parent.parent.name}"
        ) from error
    except Exception as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}): "
            f"run alice-preprocess -d {path.parent.parent.name} --verify"
        ) from error


def case_names(folder: Path) -> list[str]:
    """The complete cases of a folder of preprocessed data, sorted; none where there is no such folder."""
    files = {path.name for path in Path(folder).glob("*")}
    return sorted(
        name[:-4] for name in files if name.endswith(".pkl") and name[:-4] + ".b2nd" in files
    )


def case_properties(folder: Path, case: str) -> dict:
    """nnU-Net's properties of a case, and under 'alice' what save_volume asks for. Raises UserError."""
    path = Path(folder) / f"{case}.pkl"
    with reading(path):
        properties = pickle.loads(path.read_bytes())
        (
            properties["alice"]["body"],
            properties["alice"]["crc32"],
            properties["alice"]["chunk_crc32"],
        )
    return properties


def open_volume(folder: Path, case: str) -> Volume:
    """Open one case; its image stays on the disk. Raises UserError that names the file where it is damaged or gone, now or when it is read."""
    known = case_properties(folder, case)["alice"]
    image = StoredImage(Path(folder) / f"{case}.b2nd", known["chunk_crc32"])
    return Volume(case, image, tuple(known["spacing"]), Body.from_dict(known["body"]))


def check_volume(folder: Path, case: str) -> str | None:
    """Read all of a case. Returns what is wrong with it, None if nothing is."""
    try:
        image = open_volume(folder, case).image[:]
        known = case_properties(folder, case)["alice"]
    except UserError as error:
        return f"cannot be read: {error.__cause__}"
    if crc32(np.ascontiguousarray(image)) != known["crc32"]:
        return f"{case}.b2nd does not match its checksum"
    return None


def save_volume(
    folder: Path, case: str, image: np.ndarray, properties: dict, patch_size: tuple[int, int, int]
) -> None:
    """Write one case with nnU-Net's own code, complete or not at all.

    image: (C, Z, Y, X) float32. properties: nnU-Net's, with properties['alice'] = {'spacing': mm of image (z, y, x),
    'body': Body.to_dict(), 'plans_sha256': str}; checksums are added here. patch_size: the crops that will be read,
    in voxels (z, y, x); the blocks in the file fit them.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    folder = Path(folder)
    image = np.ascontiguousarray(image, np.float32)
    properties["alice"]["crc32"] = crc32(image)
    blocks, chunks = comp_blosc2_params(
        image.shape,
        patch_size,
        image.itemsize,
        max_block_nbytes=BLOCK_BYTES,
        max_chunk_nbytes=CHUNK_BYTES,
    )
    no_labels = np.zeros(
        (1, 1, 1, 1), np.int8
    )  # nnU-Net writes a segmentation; it stays behind in the partial folder
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    try:
        nnUNetDatasetBlosc2.save_case(
            image,
            no_labels,
            properties,
            str(partial / case),
            chunks=chunks,
            blocks=blocks,
            chunks_seg=no_labels.shape,
            blocks_seg=no_labels.shape,
        )
        stored = blosc2.open(
            str(partial / f"{case}.b2nd"), mode="r"
        )  # its schunk does not outlive it
        properties["alice"]["chunk_crc32"] = [
            crc32(stored.schunk.get_chunk(i)) for i in range(stored.schunk.nchunks)
        ]
        (partial / f"{case}.pkl").write_bytes(pickle.dumps(properties))
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
