"""Preprocessed cases on the disk.

CASE.b2nd holds the image, CASE.pkl its properties. CASE.pkl is written last: a case without it is
incomplete.
"""

import errno
import hashlib
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
from alice_nnunet.geometry import Spacing, Triple, overlap

PARTIAL = ".partial_"  # prefix of the folders of cases that are being written
# Bytes that are decompressed together. A crop reads whole blocks: small ones read less around it.
BLOCK_BYTES = 16 * 1024
CHUNK_BYTES = 256 * 1024  # before compression; one checksum each
CHECKED_FILES = 4096  # files whose checked chunks a process remembers

Bounds = list[tuple[int, int]]  # first index and the one after the last, along each axis


@dataclass(frozen=True)
class Volume:
    """One preprocessed case.

    Attributes:
        name: of the case.
        image: (C, Z, Y, X) float32. A StoredImage is opened when its shape is asked for and read
            from the disk when it is sliced.
        spacing: mm, (z, y, x).
        body: where the body is in the image.
    """

    name: str
    image: "StoredImage | np.ndarray"
    spacing: Spacing
    body: Body

    def read_crop(self, centre: Triple, size: Triple, out: np.ndarray | None = None) -> np.ndarray:
        """A crop of exactly size voxels whose voxel number size // 2 is centre; 0 outside.

        A stored image is decompressed straight into the crop, without a copy in between.

        Args:
            centre: voxel (z, y, x) of the volume; may lie outside.
            size: of the crop in voxels.
            out: C-contiguous (C, *size) float32 array to fill; a new one by default.

        Returns:
            out, or the new array.

        Raises:
            UserError: the file is damaged or missing.
        """
        shared = overlap(centre, size, self.image.shape[1:])
        crop = np.empty((self.image.shape[0], *size), np.float32) if out is None else out
        if shared.size != tuple(size):
            crop[:] = 0
        if shared.is_empty:
            return crop

        target = (slice(None), *shared.crop)
        source = (slice(None), *shared.image)
        part = crop[target]
        if isinstance(self.image, StoredImage) and part.flags.c_contiguous:
            self.image.read_into(part, source)
        else:
            part[:] = self.image[source]
        return crop


class StoredImage:
    """A (C, Z, Y, X) image in a file; slicing reads only the blocks that are needed.

    A process checks the CRC-32 of a chunk when it first reads from it, and again after the file
    has changed.

    Args:
        path: the .b2nd file.
        checksums: CRC-32 of each compressed chunk of the file.
    """

    def __init__(self, path: Path, checksums: Sequence[int]):
        self.path = path
        self.checksums = checksums

    @cached_property
    def array(self) -> blosc2.NDArray:
        """The open file. Opened late because most volumes that are drawn are never read.

        Raises:
            UserError: the file is damaged or missing.
        """
        has_memory_maps = os.name != "nt"  # blosc2 has none on Windows
        with reading(self.path):
            return blosc2.open(
                str(self.path),
                mode="r",
                dparams={"nthreads": 1},
                mmap_mode="r" if has_memory_maps else None,
            )

    @cached_property
    def checked(self) -> set[int]:
        """Numbers of the chunks that this process has compared with their checksums."""
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
        """Read slices and single indices, as of an array.

        Raises:
            UserError: the file is damaged or missing.
        """
        with reading(self.path):
            self.check(self.bounds(index))
            return self.array[index]

    def read_into(self, out: np.ndarray, index: tuple[slice, ...]) -> None:
        """Read self[index] into an existing array, without a copy in between.

        Args:
            out: C-contiguous, of the shape of self[index] and this image's type.
            index: one slice of step 1 for each axis.

        Raises:
            ValueError: out has another shape, type or memory layout.
            UserError: the file is damaged or missing.
        """
        bounds = self.bounds(index)
        fits = (
            out.shape == tuple(stop - start for start, stop in bounds)
            and out.dtype == self.dtype
            and out.flags.c_contiguous
        )

        if not fits:
            raise ValueError(
                f"{bounds} of {self.dtype} do not go into a {out.dtype} array of shape "
                f"{out.shape} and strides {out.strides}"
            )

        with reading(self.path):
            self.check(bounds)
            self.array.get_slice_numpy(out, tuple(zip(*bounds)))

    def check(self, bounds: Bounds) -> None:
        """Compare the chunks that bounds read from with their checksums, each only once.

        Raises:
            ValueError: a chunk is not what was saved.
        """
        for chunk in self.chunks_of(bounds) - self.checked:
            if crc32(self.array.schunk.get_chunk(chunk)) != self.checksums[chunk]:
                raise ValueError("it does not match its checksum")
            self.checked.add(chunk)

    def chunks_of(self, bounds: Bounds) -> set[int]:
        """Numbers of the chunks that bounds read from."""
        chunk_size = self.array.chunks
        spans = [range(start // c, -(-stop // c)) for (start, stop), c in zip(bounds, chunk_size)]
        grid = [-(-n // c) for n, c in zip(self.shape, chunk_size)]
        return {int(np.ravel_multi_index(place, grid)) for place in itertools.product(*spans)}

    def bounds(self, index) -> Bounds:
        """The bounds of an index that is made of slices and single indices."""
        parts = index if isinstance(index, tuple) else (index,)
        parts += (slice(None),) * (len(self.shape) - len(parts))
        return [
            part.indices(n)[:2] if isinstance(part, slice) else (part, part + 1)
            for part, n in zip(parts, self.shape)
        ]


@lru_cache(CHECKED_FILES)
def checked_chunks(path: Path, version: tuple) -> set[int]:
    """The set, to be added to, of the chunks of one version of a file that were checked."""
    return set()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while path is read into a UserError with the file and the remedy."""
    dataset = path.parent.parent.name

    try:
        yield
    except UserError:
        raise  # it names the file and the remedy already
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: put it back, or run alice-preprocess -d {dataset}"
        ) from error
    except Exception as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}): "
            f"run alice-preprocess -d {dataset} --verify"
        ) from error


def case_names(folder: Path) -> list[str]:
    """The complete cases of a folder of preprocessed data, sorted; none if it does not exist."""
    files = {path.name for path in Path(folder).glob("*")}
    properties = [name.removesuffix(".pkl") for name in files if name.endswith(".pkl")]
    return sorted(case for case in properties if f"{case}.b2nd" in files)


def case_list_sha256(cases: list[str]) -> str:
    """SHA-256 of names of cases, whatever their order: tells whether volumes are the same ones."""
    return hashlib.sha256("\n".join(sorted(cases)).encode()).hexdigest()


def case_properties(folder: Path, case: str) -> dict:
    """nnU-Net's properties of a case and, under 'alice', those that save_volume adds.

    Raises:
        UserError: the file is damaged or missing.
    """
    path = Path(folder) / f"{case}.pkl"
    with reading(path):
        properties = pickle.loads(path.read_bytes())
        for name in ("body", "crc32", "chunk_crc32"):
            properties["alice"][name]  # a KeyError here: another program wrote the file
    return properties


def open_volume(folder: Path, case: str) -> Volume:
    """Open one case; its image stays on the disk.

    Raises:
        UserError: a file is damaged or missing. For the image, raised when it is first read.
    """
    known = case_properties(folder, case)["alice"]
    image = StoredImage(Path(folder) / f"{case}.b2nd", known["chunk_crc32"])
    return Volume(case, image, tuple(known["spacing"]), Body.from_dict(known["body"]))


def flip_volume(volume: Volume, axes: tuple[int, ...]) -> Volume:
    """The first channel of a volume in memory, with some of the axes (z, y, x) reversed."""
    image = np.flip(volume.image[:1], tuple(axis + 1 for axis in axes))
    return Volume(
        volume.name, np.ascontiguousarray(image), volume.spacing, volume.body.flipped(axes)
    )


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
    folder: Path, case: str, image: np.ndarray, properties: dict, patch_size: Triple
) -> None:
    """Write one case with nnU-Net's own code, completely or not at all.

    Args:
        folder: of the preprocessed cases.
        case: its name.
        image: (C, Z, Y, X) float32.
        properties: nnU-Net's, with properties['alice'] = {'spacing': mm of image (z, y, x),
            'body': Body.to_dict(), 'plans_sha256': str}. Checksums are added to it.
        patch_size: voxels (z, y, x) of the crops that will be read; the file's blocks fit them.

    Raises:
        OSError: it could not be written; with ENOSPC, the disk is full.
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
    # nnU-Net always writes a segmentation; this one stays behind in the partial folder.
    no_labels = np.zeros((1, 1, 1, 1), np.int8)

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
        properties["alice"]["chunk_crc32"] = chunk_checksums(partial / f"{case}.b2nd")
        (partial / f"{case}.pkl").write_bytes(pickle.dumps(properties))

        # Without its .pkl the old case does not count; the new .pkl comes last.
        (folder / f"{case}.pkl").unlink(missing_ok=True)
        for ending in ("b2nd", "pkl"):
            sync(partial / f"{case}.{ending}")
            (partial / f"{case}.{ending}").replace(folder / f"{case}.{ending}")
        sync(folder)
    except RuntimeError as error:
        # blosc2 does not say why it could not write; only now the unfinished files take space.
        if shutil.disk_usage(partial).free < CHUNK_BYTES:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder)) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def chunk_checksums(path: Path) -> list[int]:
    """CRC-32 of each compressed chunk of a .b2nd file."""
    stored = blosc2.open(str(path), mode="r")  # kept in a name: its schunk does not outlive it
    return [crc32(stored.schunk.get_chunk(i)) for i in range(stored.schunk.nchunks)]


def remove_partial(folder: Path) -> None:
    """Remove what a killed save_volume left. Not for a folder that another process writes to."""
    for partial in Path(folder).glob(PARTIAL + "*"):
        shutil.rmtree(partial, ignore_errors=True)
