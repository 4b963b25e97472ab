"""Aligned pairs per second on one core, against the way the official code reads them.

    python benchmarks/loader.py [DATA] [-folder FOLDER] [-cases 20 2000] [-seconds 10] [--json FILE]

DATA has CASE.nii.gz files of CT (default: those that ship with the package). PEOPLE of them are
resampled to 200 x 460 x 460 voxels of 1.5 x 0.76 x 0.76 mm, the size of a FLARE volume, with noise,
as interpolation takes theirs away. All cases are links to these. Their embeddings are made up, of
the paper preset's size: smooth random functions of the position in the body's box, and noise.

Ours: AlignedPairs in batches of 8, volumes as save_volume writes them, learned matcher and body
matcher. Official: for each pair one whole .nii.gz is read, turned to RAS and windowed, both crops
are cut out with zeros around, and the embeddings of both people are unpickled, 128 channels in fp16
every 4 mm and a coarse map beside them, as SAM stores them; the other volume is kept from the pair
before, and the loader's batch is one whole volume. The search for the match is not counted for it.

Both run in turn, in one process on one core, with files that the system has in memory. Rates are
per second of that core's time (time.process_time), so that other work on the machine does not
count; wall_pairs_per_s is by the clock.
"""

import argparse
import json
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.utils.data import default_collate

from alice_nnunet.data.body import find_body
from alice_nnunet.data.pairs import AlignedPairs
from alice_nnunet.data.volumes import save_volume
from alice_nnunet.demo.datasets import volumes
from alice_nnunet.geometry import Spacing, Triple, crop_around
from alice_nnunet.matcher.baselines import match_by_body
from alice_nnunet.matcher.embedding import pack
from alice_nnunet.matcher.index import save_embedding
from alice_nnunet.matcher.learned import EmbeddingMatcher
from alice_nnunet.pretrain.runtime.loading import batches

SIZE = (200, 460, 460)  # voxels (z, y, x)
SPACING = (1.5, 0.76, 0.76)  # mm (z, y, x)
CROP = (64, 192, 192)
WINDOW = (-125.0, 255.0)  # HU
NOISE = 12.0  # HU, standard deviation
PEOPLE = (
    "lidc0001",
    "acrinflt001_abd",
    "acrinnsclc042",
    "4dlung113",
    "cptacpda_c3l00189",
    "crlm1004",
)

# Of the paper preset's index
STEP = 8.5  # mm
CHANNELS = 256  # fine and coarse

# Nodes of SAM's maps of such a volume
SAM_FINE = (75, 87, 87)  # every 4 mm
SAM_COARSE = (38, 11, 11)  # every 8 x 32 x 32 mm


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("data", type=Path, nargs="?", help="folder of CASE.nii.gz")
    p.add_argument(
        "-folder",
        type=Path,
        help="where the volumes are made, 1.5 GB, and kept (default: a temporary folder)",
    )
    p.add_argument("-cases", type=int, nargs="+", default=[20, 2000])
    p.add_argument(
        "-seconds", type=float, default=10.0, help="of the core for each measurement (default: 10)"
    )
    p.add_argument("--json", type=Path, help="write the rows there")
    return p


def main() -> None:
    arguments = parser().parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)

    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="alice_loader_"))
    try:
        people = make_people(arguments.data, folder)
        with threadpool_limits(1):
            rows = [measure(folder, people, cases, arguments.seconds) for cases in arguments.cases]
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)

    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def make_people(data: Path | None, folder: Path) -> list[str]:
    """Write the files of each person into folder, where they are not yet. Returns their names.

    data: folder of CASE.nii.gz, None for the CT that ships with the package.
    """
    sources = volumes()
    if data:
        sources = {path.name.removesuffix(".nii.gz"): path for path in data.glob("*.nii.gz")}
    people = [name for name in PEOPLE if name in sources]

    for part in ("raw", "volumes", "anatomy", "pickles"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(people):
        if not (folder / "pickles" / f"{name}.pkl").is_file():
            print(f"making {name}", flush=True)
            make_person(name, sources[name], folder, np.random.default_rng(number))
    return people


def make_person(name: str, source: Path, folder: Path, rng: np.random.Generator) -> None:
    """Write a person's raw volume, preprocessed volume, index and pickled embedding."""
    small = torch.from_numpy(read_hounsfield(source).copy())
    large = torch.nn.functional.interpolate(small[None, None], SIZE, mode="trilinear")
    hounsfield = large[0, 0].numpy()
    hounsfield += NOISE * rng.standard_normal(SIZE, dtype=np.float32)

    stored = np.rint(hounsfield[:, ::-1, ::-1]).astype(np.int16).transpose(2, 1, 0)
    affine = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0])  # LPS, as scanners store it
    nibabel.save(nibabel.Nifti1Image(stored, affine), folder / "raw" / f"{name}.nii.gz")

    image = windowed(hounsfield)
    body = find_body(image[0] > 0.1, SPACING)
    known = {"spacing": SPACING, "body": body.to_dict(), "plans_sha256": ""}
    save_volume(folder / "volumes", name, image, {"alice": known}, CROP)
    save_embedding(folder / "anatomy", name, pack(*made_up_vectors(body.box, rng)), {})

    maps = [
        rng.standard_normal((1, 128, *grid), dtype=np.float32).astype(np.float16)
        for grid in (SAM_FINE, SAM_COARSE)
    ]
    pickled = pickle.dumps(maps, protocol=pickle.HIGHEST_PROTOCOL)
    (folder / "pickles" / f"{name}.pkl").write_bytes(pickled)


def made_up_vectors(
    box: tuple[Triple, Triple], rng: np.random.Generator
) -> tuple[np.ndarray, Spacing, Spacing]:
    """Vectors over a body's box that are alike at the same share of two boxes.

    Returns:
        The vectors, (C, Z, Y, X), their first node, and their step, in mm.
    """
    start = np.array(box[0]) * SPACING
    stop = np.array(box[1]) * SPACING
    nodes = np.maximum(1, (stop - start) // STEP).astype(int)
    step = (stop - start) / nodes

    along_axes = [(np.arange(count) + 0.5) / count for count in nodes]
    shares = np.stack(np.meshgrid(*along_axes, indexing="ij"), -1)  # (Z, Y, X, 3)
    waves = np.random.default_rng(99)
    frequencies = waves.normal(0, 8, (3, CHANNELS))
    phases = waves.uniform(0, 2 * np.pi, CHANNELS)
    vectors = np.cos(shares @ frequencies + phases)
    vectors = vectors + 0.3 * rng.standard_normal(vectors.shape)
    vectors = np.moveaxis(vectors, -1, 0).astype(np.float32)

    # Fine and coarse have the length that pack() expects.
    halves = [half / np.linalg.norm(half, axis=0) / 2**0.5 for half in np.split(vectors, 2)]
    return np.concatenate(halves), tuple(start + step / 2), tuple(step)


def link_cases(folder: Path, people: list[str], count: int) -> tuple[Path, Path, list[str]]:
    """Link so many cases to the people's files.

    Returns:
        The folder of the volumes, that of the embeddings, and the cases.
    """
    cases = [f"case_{number:05d}" for number in range(count)]
    made = folder / f"{count}_cases"

    for part, endings in (("volumes", ("b2nd", "pkl")), ("anatomy", ("npy", "json"))):
        (made / part).mkdir(parents=True, exist_ok=True)
        for number, case in enumerate(cases):
            person = people[number % len(people)]
            for ending in endings:
                link = made / part / f"{case}.{ending}"
                if not link.exists():
                    link.hardlink_to(folder / part / f"{person}.{ending}")
    return made / "volumes", made / "anatomy", cases


@dataclass(frozen=True)
class Rate:
    """Pairs per second of the core's time, and by the clock."""

    core: float
    wall: float


def measure(folder: Path, people: list[str], count: int, seconds: float) -> dict:
    """Ours with both matchers, and the official way, on so many cases."""
    stored, anatomy, cases = link_cases(folder, people, count)

    by_embedding = AlignedPairs(
        stored, cases, cases, CROP, EmbeddingMatcher(anatomy), min_score=0.7, seed=(0, 0)
    )
    by_body = replace(by_embedding, matcher=match_by_body)
    ours, rejected = our_rate(by_embedding, seconds)
    body, _ = our_rate(by_body, seconds)
    official = rate(official_pairs(folder, people, np.random.default_rng(0)), seconds, warm_up=1)

    row = {
        "pairs_per_s": round(ours.core, 2),
        "official_pairs_per_s": round(official.core, 4),
        "speedup": round(ours.core / official.core, 1),
        "cases": count,
        "body_pairs_per_s": round(body.core, 2),
        "rejected_per_pair": round(rejected, 2),
        "wall_pairs_per_s": round(ours.wall, 2),
        "official_wall_pairs_per_s": round(official.wall, 4),
        "open_files": open_files(),
    }
    print(row, flush=True)
    return row


def open_files() -> int:
    """How many files this process has open; 0 where the system does not say."""
    descriptors = Path("/proc/self/fd")
    return len(list(descriptors.iterdir())) if descriptors.is_dir() else 0


class EndlessBatches(Sequence):
    """The numbers of the pairs in batches of 8, without end."""

    def __len__(self) -> int:
        return 10**8

    def __getitem__(self, number: int) -> range:
        return range(8 * number, 8 * number + 8)


def our_rate(pairs: AlignedPairs, seconds: float) -> tuple[Rate, float]:
    """The rate in batches of 8, and pairs rejected for each."""
    rejected: list[int] = []

    def one_by_one() -> Iterator[None]:
        for batch in batches(pairs, EndlessBatches()):
            rejected.extend(batch.rejected.tolist())
            yield from [None] * 8

    speed = rate(one_by_one(), seconds, warm_up=16)
    return speed, float(np.mean(rejected))


def rate(pairs: Iterator, seconds: float, warm_up: int) -> Rate:
    """Take pairs for at least so many seconds of the core, after some that do not count."""
    for _ in range(warm_up):
        next(pairs)

    core = time.process_time()
    wall = time.perf_counter()
    count = 0
    while time.process_time() - core < seconds:
        next(pairs)
        count += 1
    return Rate(count / (time.process_time() - core), count / (time.perf_counter() - wall))


def official_pairs(folder: Path, people: list[str], rng: np.random.Generator) -> Iterator[tuple]:
    """Pairs as the official code reads them: a new volume is the query, the last one the key."""

    def batch_of_one(name: str) -> np.ndarray:
        volume = windowed(read_hounsfield(folder / "raw" / f"{name}.nii.gz"))
        return default_collate([volume])[0].numpy()

    def embedding(name: str) -> list[np.ndarray]:
        return pickle.loads((folder / "pickles" / f"{name}.pkl").read_bytes())

    key_name = people[0]
    key = batch_of_one(key_name)
    while True:
        name = people[rng.integers(len(people))]
        query = batch_of_one(name)
        embeddings = [embedding(name), embedding(key_name)]
        point = tuple(int(rng.integers(n)) for n in SIZE)
        yield crop_around(query, point, CROP), crop_around(key, point, CROP), embeddings

        key_name = name
        key = query


def read_hounsfield(path: Path) -> np.ndarray:
    """A whole volume in RAS, (Z, Y, X) float32."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    return image.get_fdata(dtype=np.float32).transpose(2, 1, 0)


def windowed(hounsfield: np.ndarray) -> np.ndarray:
    """(Z, Y, X) HU -> (1, Z, Y, X), 0 to 1."""
    low, high = WINDOW
    return np.clip((hounsfield - low) / (high - low), 0, 1)[None]


if __name__ == "__main__":
    main()
