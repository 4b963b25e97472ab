"""Aligned pairs per second on one core, from volumes of full FLARE size, against the way the official code reads them.

    python benchmarks/loader.py [DATA] [-folder FOLDER] [-cases 20 2000] [-seconds 10] [--json FILE]

DATA has CASE.nii.gz files of CT (default: those that ship with the package). PEOPLE of them are resampled to 200 x 460 x 460
voxels of 1.5 x 0.76 x 0.76 mm, with noise, as interpolation takes theirs away; all cases are links to these. Their embeddings
are made up, of the paper preset's size: smooth random functions of the position in the body's box, and noise.

Ours: AlignedPairs in batches of 8, volumes as save_volume writes them, learned matcher and body matcher. Official: for each
pair one whole .nii.gz is read, turned to RAS and windowed, both crops are cut out with zeros around, and the embeddings of
both people are unpickled, 128 channels in fp16 every 4 mm and a coarse map beside them, as SAM stores them; the other volume
is kept from the pair before, and the loader's batch is one whole volume. Not counted for it: the search for the match. Both run in
turn, in one process on one core, with files that the system has in memory. Rates are per second of that core's time (time.process_time),
so that other work on the machine does not count; wall_pairs_per_s is by the clock.
"""

import argparse
import json
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
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
from alice_nnunet.geometry import crop_around
from alice_nnunet.matcher.baselines import match_by_body
from alice_nnunet.matcher.embedding import pack
from alice_nnunet.matcher.index import save_embedding
from alice_nnunet.matcher.learned import EmbeddingMatcher
from alice_nnunet.pretrain.runtime.loading import batches

SIZE, SPACING = (200, 460, 460), (1.5, 0.76, 0.76)  # voxels and mm, (z, y, x)
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
STEP, CHANNELS = 8.5, 256  # of the paper preset's index: mm, and fine and coarse channels
SAM_GRID, SAM_COARSE = (
    (75, 87, 87),
    (38, 11, 11),
)  # nodes of SAM's maps of such a volume: every 4 mm, every 8 x 32 x 32 mm


def main() -> None:
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
    arguments = p.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="alice_loader_"))
    try:
        people = make_people(arguments.data, folder)
        with threadpool_limits(1):
            rows = [row(folder, people, cases, arguments.seconds) for cases in arguments.cases]
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def make_people(data: Path | None, folder: Path) -> list[str]:
    """Write each person's raw volume, preprocessed volume, index and pickled embedding into folder, where they are not yet."""
    sources = (
        {p.name.removesuffix(".nii.gz"): p for p in data.glob("*.nii.gz")} if data else volumes()
    )
    people = [name for name in PEOPLE if name in sources]
    for part in ("raw", "volumes", "anatomy", "pickles"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(people):
        if not (folder / "pickles" / f"{name}.pkl").is_file():
            print(f"making {name}", flush=True)
            make_person(name, sources[name], folder, np.random.default_rng(number))
    return people


def make_person(name: str, source: Path, folder: Path, rng: np.random.Generator) -> None:
    hounsfield = (
        nibabel.as_closest_canonical(nibabel.load(source))
        .get_fdata(dtype=np.float32)
        .transpose(2, 1, 0)
    )
    large = torch.nn.functional.interpolate(
        torch.from_numpy(hounsfield.copy())[None, None], SIZE, mode="trilinear"
    )[0, 0].numpy()
    large += NOISE * rng.standard_normal(SIZE, dtype=np.float32)
    affine = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0])  # LPS, as scanners store it
    nibabel.save(
        nibabel.Nifti1Image(
            np.rint(large[:, ::-1, ::-1]).astype(np.int16).transpose(2, 1, 0), affine
        ),
        folder / "raw" / f"{name}.nii.gz",
    )
    image = np.clip((large - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1)[None]
    body = find_body(image[0] > 0.1, SPACING)
    save_volume(
        folder / "volumes",
        name,
        image,
        {"alice": {"spacing": SPACING, "body": body.to_dict(), "plans_sha256": ""}},
        CROP,
    )
    save_embedding(folder / "anatomy", name, pack(*made_up_vectors(body.box, rng)), {})
    maps = [
        rng.standard_normal((1, 128, *grid), dtype=np.float32).astype(np.float16)
        for grid in (SAM_GRID, SAM_COARSE)
    ]
    (folder / "pickles" / f"{name}.pkl").write_bytes(
        pickle.dumps(maps, protocol=pickle.HIGHEST_PROTOCOL)
    )


def made_up_vectors(box: tuple, rng: np.random.Generator) -> tuple[np.ndarray, tuple, tuple]:
    """Vectors (C, Z, Y, X) over a body's box that are alike at the same share of two boxes, the first node and the step in mm."""
    start, stop = (np.array(corner) * SPACING for corner in box)
    nodes = np.maximum(1, (stop - start) // STEP).astype(int)
    shares = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n for n in nodes], indexing="ij"), -1)
    waves = np.random.default_rng(99)
    vectors = np.cos(
        shares @ waves.normal(0, 8, (3, CHANNELS)) + waves.uniform(0, 2 * np.pi, CHANNELS)
    )
    vectors = np.moveaxis(vectors + 0.3 * rng.standard_normal(vectors.shape), -1, 0).astype(
        np.float32
    )
    halves = [half / np.linalg.norm(half, axis=0) / 2**0.5 for half in np.split(vectors, 2)]
    steps = (stop - start) / nodes
    return np.concatenate(halves), tuple(start + steps / 2), tuple(steps)


def link_cases(folder: Path, people: list[str], count: int) -> tuple[Path, Path, list[str]]:
    """Folders of so many cases' volumes and embeddings, all of them links. Returns both and the cases."""
    cases, made = [f"case_{i:05d}" for i in range(count)], folder / f"{count}_cases"
    for part, endings in (("volumes", ("b2nd", "pkl")), ("anatomy", ("npy", "json"))):
        (made / part).mkdir(parents=True, exist_ok=True)
        for number, case in enumerate(cases):
            for ending in endings:
                link = made / part / f"{case}.{ending}"
                if not link.exists():
                    os.link(folder / part / f"{people[number % len(people)]}.{ending}", link)
    return made / "volumes", made / "anatomy", cases


def row(folder: Path, people: list[str], count: int, seconds: float) -> dict:
    """Ours with both matchers and the official path, on so many cases."""
    stored, anatomy, cases = link_cases(folder, people, count)
    matchers = {"embedding": EmbeddingMatcher(anatomy), "body": match_by_body}
    speeds, rejected = {}, {}
    for name, matcher in matchers.items():
        pairs = AlignedPairs(stored, cases, cases, CROP, matcher, 0.7, (0, 0))
        speeds[name], rejected[name] = measure(pairs, seconds)
    ours, clock = speeds["embedding"]
    official, official_clock = rate(
        official_pairs(folder, people, np.random.default_rng(0)), seconds, warm_up=1
    )
    result = {
        "pairs_per_s": round(ours, 2),
        "official_pairs_per_s": round(official, 4),
        "speedup": round(ours / official, 1),
        "cases": count,
        "body_pairs_per_s": round(speeds["body"][0], 2),
        "rejected_per_pair": round(rejected["embedding"], 2),
        "wall_pairs_per_s": round(clock, 2),
        "official_wall_pairs_per_s": round(official_clock, 4),
        "open_files": open_files(),
    }
    print(result, flush=True)
    return result


def open_files() -> int:
    """How many files this process has open; 0 where the system does not say."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


class Batches(Sequence):
    """The numbers of the pairs in batches of 8, without end."""

    def __len__(self) -> int:
        return 10**8

    def __getitem__(self, number: int) -> range:
        return range(8 * number, 8 * number + 8)


def measure(pairs: AlignedPairs, seconds: float) -> tuple[tuple[float, float], float]:
    """The rate in batches of 8, and pairs rejected for each."""
    rejected = []

    def one_by_one() -> Iterator[None]:
        for batch in batches(pairs, Batches()):
            rejected.extend(batch.rejected.tolist())
            yield from [None] * 8

    speed = rate(one_by_one(), seconds, warm_up=16)
    return speed, float(np.mean(rejected))


def rate(pairs: Iterator, seconds: float, warm_up: int) -> tuple[float, float]:
    """Pairs per second of the core's time and by the clock, over at least so many seconds of the core, after some that do not count."""
    for _ in range(warm_up):
        next(pairs)
    start, clock, count = time.process_time(), time.perf_counter(), 0
    while time.process_time() - start < seconds:
        next(pairs)
        count += 1
    return count / (time.process_time() - start), count / (time.perf_counter() - clock)


def official_pairs(folder: Path, people: list[str], rng: np.random.Generator) -> Iterator[tuple]:
    """Pairs as the official code reads them: the new volume is the query, the one before is the key."""
    key_name = people[0]
    batch_of_one = lambda name: default_collate([read_whole(folder / "raw" / f"{name}.nii.gz")])[
        0
    ].numpy()
    key = batch_of_one(key_name)
    while True:
        name = people[rng.integers(len(people))]
        query = batch_of_one(name)
        embeddings = [
            pickle.loads((folder / "pickles" / f"{n}.pkl").read_bytes()) for n in (name, key_name)
        ]
        point = tuple(int(rng.integers(n)) for n in SIZE)
        yield crop_around(query, point, CROP), crop_around(key, point, CROP), embeddings
        key_name, key = name, query


def read_whole(path: Path) -> np.ndarray:
    """A whole volume in RAS, windowed to 0 .. 1: (1, Z, Y, X) float32."""
    image = (
        nibabel.as_closest_canonical(nibabel.load(path))
        .get_fdata(dtype=np.float32)
        .transpose(2, 1, 0)
    )
    return np.clip((image - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1)[None]


if __name__ == "__main__":
    main()
