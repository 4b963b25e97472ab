"""How well do matches find the same place in another person? On labeled real CT that no training has seen.

    python benchmarks/matching.py DATA ANATOMY [--trade-off] [--json FILE]

DATA has images/CASE.nii.gz and labels/CASE.nii.gz of the people; ANATOMY is the folder alice-embed has written for a
dataset without them, beside its AlicePretrainPlans.json. Every ordered pair of people and every organ both have:
the organ's centroid is matched (error in mm), and points of the organ are (do they fall into the same organ?). Side by
side: the learned matcher, the position in the body's box, chance. Then A -> B -> A, a known transform, time and size.
"""

import argparse
import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from organ_retrieval import draw_points, labeled_volume
from scipy import ndimage
from threadpoolctl import threadpool_limits

from alice_nnunet.data.body import find_body
from alice_nnunet.data.volumes import Volume
from alice_nnunet.matcher.baselines import match_by_body
from alice_nnunet.matcher.embed import body_vectors, embed_volume
from alice_nnunet.matcher.embedding import Embedding, pack
from alice_nnunet.matcher.index import open_embedding, save_embedding
from alice_nnunet.matcher.learned import match_millimetres, return_distance
from alice_nnunet.matcher.weights import load_network
from alice_nnunet.model.views import Augmentation, augment

PEOPLE = ("lidc0001", "ts_example", "ts_dicomslab")
ORGANS = (
    "liver",
    "right kidney",
    "spleen",
    "pancreas",
    "aorta",
    "inferior vena cava",
    "right adrenal",
    "left adrenal",
    "gallbladder",
    "esophagus",
    "stomach",
    "duodenum",
    "left kidney",
)  # FLARE 2022
POINTS = 50
MIN_SCORE = 0.65  # of alice-pretrain, preset tiny
FLARE_SIZE = (300.0, 350.0, 350.0)  # mm


@dataclasses.dataclass
class Person:
    volume: Volume
    labels: np.ndarray
    embedding: Embedding

    def centre(self, organ: int) -> np.ndarray:
        """Centroid of an organ, mm."""
        return (np.argwhere(self.labels == organ).mean(0) + 0.5) * self.volume.spacing

    def label_at(self, point: np.ndarray) -> int:
        voxel = np.clip(
            np.floor(point / self.volume.spacing).astype(int), 0, np.array(self.labels.shape) - 1
        )
        return int(self.labels[tuple(voxel)])

    def body_points(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """Random points of the body, (number, 3) mm."""
        return (
            np.array([self.volume.body.random_point(rng) for _ in range(number)]) + 0.5
        ) * self.volume.spacing


def volume_of(name: str, image: np.ndarray, spacing) -> Volume:
    return Volume(name, image, tuple(spacing), find_body(image[0] > 0.01, tuple(spacing)))


def read_image(image: Path, plans: dict) -> np.ndarray:
    """An image as the plans preprocess it, by nnU-Net's own class: (1, Z, Y, X)."""
    manager = PlansManager(plans)
    dataset_json = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0},
        "file_ending": ".nii.gz",
    }
    data, _, _ = DefaultPreprocessor(verbose=False).run_case(
        [str(image)], None, manager, manager.get_configuration("3d_fullres"), dataset_json
    )
    return data.astype(np.float32)


def read_person(name: str, data: Path, plans: dict, embed: Callable[[Volume], Embedding]) -> Person:
    image, labels = labeled_volume(
        data / f"images/{name}.nii.gz", data / f"labels/{name}.nii.gz", plans
    )
    volume = volume_of(
        name, image.astype(np.float32), plans["configurations"]["3d_fullres"]["spacing"]
    )
    return Person(volume, labels, embed(volume))


def by_body(point: np.ndarray, query: Person, key: Person) -> np.ndarray:
    voxel = tuple(int(v) for v in point / query.volume.spacing)
    return (
        np.array(match_by_body(voxel, query.volume, key.volume).point) + 0.5
    ) * key.volume.spacing


def learned(point: np.ndarray, query: Person, key: Person) -> np.ndarray:
    return match_millimetres(point, query.embedding, key.embedding)[0]


def organ_rows(people: list[Person], rng: np.random.Generator) -> list[dict]:
    """One row for each ordered pair of people and organ."""
    rows = []
    for query, key in itertools.permutations(people, 2):
        shared = sorted(set(np.unique(query.labels)) & set(np.unique(key.labels)) - {-1, 0})
        for organ in map(int, shared):
            start, goal, row = query.centre(organ), key.centre(organ), {}
            points = (
                draw_points(query.labels, [organ], POINTS, rng)[0] + 0.5
            ) * query.volume.spacing
            for name, matcher in (("learned", learned), ("body", by_body)):
                row[f"{name}_mm"] = float(np.linalg.norm(matcher(start, query, key) - goal))
                row[f"{name}_inside"] = float(
                    np.mean([key.label_at(matcher(p, query, key)) == organ for p in points])
                )
            row["score"] = match_millimetres(start, query.embedding, key.embedding)[1]
            row["chance_mm"] = float(
                np.linalg.norm(key.body_points(200, rng) - goal, axis=1).mean()
            )
            rows.append(
                {
                    "query": query.volume.name,
                    "key": key.volume.name,
                    "organ": ORGANS[organ - 1],
                    **row,
                }
            )
    return rows


def cycle_error(people: list[Person], rng: np.random.Generator) -> float:
    """Median distance (mm) of A -> B -> A over random points of the body."""
    return float(
        np.median(
            [
                return_distance(
                    p, match_millimetres(p, a.embedding, b.embedding)[0], a.embedding, b.embedding
                )
                for a, b in itertools.permutations(people, 2)
                for p in a.body_points(100, rng)
            ]
        )
    )


def known_transform_error(
    people: list[Person], embed: Callable[[Volume], Embedding], rng: np.random.Generator
) -> float:
    """Mean error (mm) of matches into the same person turned by 8 degrees, 10 % larger and brighter."""
    errors = []
    for person in people:
        image, spacing = (
            torch.from_numpy(person.volume.image)[None],
            np.array(person.volume.spacing),
        )
        drawn = Augmentation(
            torch.tensor([[8.0, 0.0, 0.0]]).deg2rad(),
            torch.tensor([1.1]),
            torch.ones(1, 3),
            torch.tensor([1.1]),
            torch.tensor([0.02]),
        )
        moved = volume_of(
            "moved", augment(image, drawn, person.volume.spacing)[0].numpy().clip(0, 1.1), spacing
        )
        embedding = embed(moved)
        middle, (c, s) = (
            np.array(image.shape[2:]) * spacing / 2,
            (np.cos(np.deg2rad(8)), np.sin(np.deg2rad(8))),
        )
        turn = np.array(
            [[1, 0, 0], [0, c, -s], [0, s, c]]
        )  # output to input is R / 1.1, in (z, y, x)
        for point in person.body_points(200, rng):
            goal = 1.1 * turn @ (point - middle) + middle
            if (goal > 0).all() and (goal < 2 * middle).all():
                errors.append(
                    np.linalg.norm(match_millimetres(point, person.embedding, embedding)[0] - goal)
                )
    return float(np.mean(errors))


def stored_otherwise(image: Path, folder: Path) -> Path:
    """The same scan with other voxels and other axes: 1.3 times as far apart, stored along S, L and A."""
    scan = nibabel.load(image)
    voxels = np.asarray(scan.dataobj, np.float32)
    size = [round(n / 1.3) for n in voxels.shape]
    factor = np.array(voxels.shape) / size
    coarse = ndimage.affine_transform(
        voxels, np.diag(factor), (factor - 1) / 2, size, order=1, mode="nearest"
    )
    affine = scan.affine @ np.block(
        [[np.diag(factor), (factor[:, None] - 1) / 2], [np.zeros((1, 3)), 1]]
    )
    coarse = nibabel.Nifti1Image(coarse.astype(np.int16), affine)
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt("SLA")
    )
    nibabel.save(coarse.as_reoriented(turn), folder / image.name)
    return folder / image.name


def storage_error(
    people: list[Person],
    data: Path,
    plans: dict,
    embed: Callable[[Volume], Embedding],
    rng: np.random.Generator,
) -> dict:
    """How far matches move when the query's file has another spacing and orientation: median mm, share within a node's diagonal,
    of all of them and of those that alice-pretrain would take."""
    moved, scores = [], []
    with tempfile.TemporaryDirectory() as folder:
        for query, key in itertools.permutations(people[:2], 2):
            image = stored_otherwise(data / f"images/{query.volume.name}.nii.gz", Path(folder))
            other = embed(volume_of("other", read_image(image, plans), query.volume.spacing))
            for point in query.body_points(200, rng):
                (there, score), (again, _) = (
                    match_millimetres(point, e, key.embedding) for e in (query.embedding, other)
                )
                moved.append(np.linalg.norm(there - again))
                scores.append(score)
    within = np.array(moved) <= np.linalg.norm(people[0].embedding.step)
    return {
        "storage_mm": float(np.median(moved)),
        "storage_within_grid": float(within.mean()),
        "storage_within_grid_taken": float(within[np.array(scores) >= MIN_SCORE].mean()),
    }


def part_of(person: Person, start: int, stop: int, embed: Callable[[Volume], Embedding]) -> Person:
    """The axial slices start to stop of a person."""
    image, labels = person.volume.image[:, start:stop], person.labels[start:stop]
    volume = volume_of(person.volume.name, image, person.volume.spacing)
    return Person(volume, labels, embed(volume))


def accepted(query: Person, key: Person, rng: np.random.Generator) -> float:
    """Share of random body points whose match alice-pretrain would take."""
    return float(
        np.mean(
            [
                match_millimetres(p, query.embedding, key.embedding)[1] >= MIN_SCORE
                for p in query.body_points(200, rng)
            ]
        )
    )


def regions(
    people: list[Person], embed: Callable[[Volume], Embedding], rng: np.random.Generator
) -> dict:
    """Matches taken between a chest and a pelvis, where none is right, and between two abdomens."""
    first, second = people[:2]
    top = int(np.flatnonzero((first.labels == 1).any((1, 2)))[-1])  # of the liver; z runs upwards
    bottom = int(np.flatnonzero(np.isin(second.labels, (2, 13)).any((1, 2)))[0])  # of the kidneys
    chest, pelvis = (
        part_of(first, top, first.labels.shape[0], embed),
        part_of(second, 0, bottom, embed),
    )
    abdomens = part_of(first, 0, top, embed), part_of(second, bottom, second.labels.shape[0], embed)
    both = lambda a, b: (accepted(a, b, rng) + accepted(b, a, rng)) / 2
    return {"accepted_chest_pelvis": both(chest, pelvis), "accepted_abdomens": both(*abdomens)}


def time_and_size(
    person: Person, embed: Callable[[Volume], Embedding], rng: np.random.Generator
) -> dict:
    """Milliseconds of a match and megabytes of a volume of FLARE's size, from memory-mapped files, one thread."""
    body = person.volume.body.box
    image = person.volume.image[(slice(None), *(slice(a, b) for a, b in zip(*body)))]
    big = volume_of("big", image, [m / n for m, n in zip(FLARE_SIZE, image.shape[1:])])
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        save_embedding(Path(folder), "big", embed(big), {})
        size = (Path(folder) / "big.npy").stat().st_size / 1e6
        embedding = open_embedding(Path(folder), "big")
        points = (np.array([big.body.random_point(rng) for _ in range(300)]) + 0.5) * big.spacing
        start = time.perf_counter()
        for point in points:
            match_millimetres(point, embedding, embedding)
        return {
            "ms_per_match": (time.perf_counter() - start) / len(points) * 1000,
            "mb_per_volume": size,
        }


def trade_off(people: list[Person], network, config: dict) -> None:
    """Accuracy against size on the disk: step between nodes, width (principal axes of the vectors), precision."""
    print(
        "| step mm | width | precision | MB of a FLARE-size volume | organ centroids, mm | inside |\n|---|---|---|---|---|---|"
    )
    for step in (config["step"], 1.5 * config["step"], 2 * config["step"]):
        stored = [
            body_vectors(network, p.volume, config["voxel"], step, torch.device("cpu"))
            for p in people
        ]
        seen = np.concatenate([v[:, v.any(0)].T for v, _, _ in stored])
        axes = np.linalg.svd(seen[::7], full_matrices=False)[2]  # (C, C)
        for width, dtype in itertools.product(
            (len(axes), len(axes) // 2, len(axes) // 4), (np.float32, np.float16, np.int8)
        ):
            for person, (vectors, origin, steps) in zip(people, stored):
                short = np.einsum("wc,czyx->wzyx", axes[:width], vectors)
                short /= np.maximum(np.linalg.norm(short, axis=0), 1e-6)
                person.embedding = pack(short, origin, steps, dtype)
            rows = organ_rows(people, np.random.default_rng(0))
            size = (
                np.prod(FLARE_SIZE)
                / step**3
                * (1 + 1 / 27)
                * width
                * np.dtype(dtype).itemsize
                / 1e6
            )
            print(
                f"| {step:g} | {width} | {np.dtype(dtype).name} | {size:.2f} | {np.mean([r['learned_mm'] for r in rows]):.1f} | "
                f"{np.mean([r['learned_inside'] for r in rows]):.2f} |",
                flush=True,
            )


def print_table(rows: list[dict]) -> None:
    columns = ("learned_mm", "body_mm", "chance_mm", "learned_inside", "body_inside")
    print("| organ | pairs | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 2))
    for organ in (*ORGANS, "all"):
        if chosen := [r for r in rows if organ in (r["organ"], "all")]:
            print(
                f"| {organ} | {len(chosen)} | "
                + " | ".join(f"{np.mean([r[c] for r in chosen]):.2f}" for c in columns)
                + " |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("anatomy", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--trade-off", action="store_true", help="accuracy against size of the index, too"
    )
    arguments = parser.parse_args()
    network, config = load_network(arguments.anatomy)
    plans = json.loads((arguments.anatomy.parent / "AlicePretrainPlans.json").read_text())
    embed = lambda volume: embed_volume(
        network, volume, config["voxel"], config["step"], torch.device("cpu")
    )
    people = [read_person(name, arguments.data, plans, embed) for name in PEOPLE]
    rng = np.random.default_rng(0)
    rows = organ_rows(people, rng)
    print_table(rows)
    mean = lambda name: float(np.mean([r[name] for r in rows]))
    taken = [r for r in rows if r["score"] >= MIN_SCORE]
    print(
        f"\n{len(taken)} of {len(rows)} centroids reach the score {MIN_SCORE}: learned {np.mean([r['learned_mm'] for r in taken]):.1f} mm, "
        f"body {np.mean([r['body_mm'] for r in taken]):.1f} mm\n"
    )
    result = {
        **{
            n: mean(n)
            for n in ("learned_mm", "body_mm", "chance_mm", "learned_inside", "body_inside")
        },
        "cycle_mm": cycle_error(people, rng),
        "known_transform_mm": known_transform_error(people, embed, rng),
        **storage_error(people, arguments.data, plans, embed, rng),
        **regions(people, embed, rng),
        "grid_mm": float(np.max(people[0].embedding.step)),
        **time_and_size(people[0], embed, rng),
    }
    print(json.dumps(result, indent=2))
    if arguments.trade_off:
        trade_off(people, network, config)
    if arguments.json:
        arguments.json.write_text(json.dumps({**result, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
