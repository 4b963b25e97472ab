"""How well do matches find the same place in another person?

    python benchmarks/matching.py DATA INDEX [--trade-off] [--json FILE]

DATA has images/CASE.nii.gz and labels/CASE.nii.gz of PEOPLE, labeled real CT that no training has
seen. INDEX is the folder that alice-embed has written for a dataset without them, beside its
AlicePretrainPlans.json.

For every ordered pair of people and every organ that both have, the organ's centroid is matched
(error in mm), and so are points of the organ (do they fall into the same organ?). Prints a table of
the learned matcher against the position in the body's box and against chance. A second table has
the middle of an organ in a slice against that in the slice of equal body height: of a long organ,
different lengths of which are visible, the centroid is not one place. Then prints, of the
learned matcher: the distance of A -> B -> A, the error for a known transform, how far matches move
when a file is stored otherwise, the share of accepted matches between the same and between
different body regions, and time and size. --trade-off adds a table of accuracy against the size of
the index.
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
from organ_retrieval import draw_points, labeled_volume
from scipy import ndimage
from threadpoolctl import threadpool_limits

from alice_nnunet.data.body import find_body
from alice_nnunet.data.volumes import Volume
from alice_nnunet.geometry import Spacing
from alice_nnunet.matcher.baselines import match_by_body
from alice_nnunet.matcher.embed import body_vectors, embed_volume
from alice_nnunet.matcher.embedding import Embedding, pack
from alice_nnunet.matcher.index import open_embedding, save_embedding
from alice_nnunet.matcher.learned import match_millimetres, return_distance
from alice_nnunet.matcher.weights import load_network
from alice_nnunet.model.views import Augmentation, augment

PEOPLE = ("lidc0001", "ts_example", "ts_dicomslab")
ORGANS = (  # FLARE 2022's, labels 1 to 13
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
)
LIVER = 1
KIDNEYS = (2, 13)
POINTS = 50  # of each organ
MIN_SCORE = 0.65  # of alice-pretrain, preset tiny
FLARE_SIZE = (300.0, 350.0, 350.0)  # mm of a body, (z, y, x)
CPU = torch.device("cpu")

TURN = 8.0  # degrees about z, of the known transform
ENLARGEMENT = 1.1  # of the known transform
COARSER = 1.3  # spacing of the file that is stored otherwise
STORAGE_POINTS = 1500  # of each person, whose matches are compared with those of that file

# Organs whose ends say at which height of the body a slice lies
LEVELS = ("right kidney", "left kidney", "right adrenal", "left adrenal", "pancreas", "duodenum")
SLICE_STEP = 10.0  # mm between the slices that are compared

COLUMNS = ("learned_mm", "body_mm", "chance_mm", "learned_inside", "body_inside")

Embed = Callable[[Volume], Embedding]


@dataclasses.dataclass
class Person:
    """A labeled person: preprocessed volume, labels (Z, Y, X) and embedding."""

    volume: Volume
    labels: np.ndarray
    embedding: Embedding

    def centre(self, organ: int) -> np.ndarray:
        """Centroid of an organ, (3,) mm."""
        return (np.argwhere(self.labels == organ).mean(0) + 0.5) * self.volume.spacing

    def label_at(self, point: np.ndarray) -> int:
        """The label at a point, (3,) mm; outside the volume that of the nearest voxel."""
        voxel = np.floor(point / self.volume.spacing).astype(int)
        inside = np.clip(voxel, 0, np.array(self.labels.shape) - 1)
        return int(self.labels[tuple(inside)])

    def body_points(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """Random points of the body, (number, 3) mm."""
        return random_points(self.volume, number, rng)


@dataclasses.dataclass
class OrganRow:
    """Matches of one organ of one ordered pair of people."""

    query: str
    key: str
    organ: str
    learned_mm: float  # error of the centroid's match
    learned_inside: float  # share of points that fall into the same organ
    body_mm: float
    body_inside: float
    score: float  # of the learned matcher for the centroid
    chance_mm: float  # mean distance of random points of the body


def random_points(volume: Volume, number: int, rng: np.random.Generator) -> np.ndarray:
    """Random points of a volume's body, (number, 3) mm."""
    voxels = np.array([volume.body.random_point(rng) for _ in range(number)])
    return (voxels + 0.5) * volume.spacing


def volume_of(name: str, image: np.ndarray, spacing: Spacing) -> Volume:
    """A volume in memory. image: (1, Z, Y, X), preprocessed."""
    spacing = tuple(spacing)
    return Volume(name, image, spacing, find_body(image[0] > 0.01, spacing))


def read_person(name: str, data: Path, plans: dict, embed: Embed) -> Person:
    """A person of DATA, preprocessed and embedded."""
    image, labels = labeled_volume(
        data / f"images/{name}.nii.gz", data / f"labels/{name}.nii.gz", plans
    )
    spacing = plans["configurations"]["3d_fullres"]["spacing"]
    volume = volume_of(name, image, spacing)
    return Person(volume, labels, embed(volume))


def by_body(point: np.ndarray, query: Person, key: Person) -> np.ndarray:
    """The match of a point by the body's box; (3,) mm both."""
    voxel = tuple(int(v) for v in point / query.volume.spacing)
    match = match_by_body(voxel, query.volume, key.volume)
    return (np.array(match.point) + 0.5) * key.volume.spacing


def learned(point: np.ndarray, query: Person, key: Person) -> np.ndarray:
    """The learned match of a point; (3,) mm both."""
    match, _ = match_millimetres(point, query.embedding, key.embedding)
    return match


def organ_rows(people: list[Person], rng: np.random.Generator) -> list[OrganRow]:
    """One row for each ordered pair of people and organ that both have."""
    rows = []
    for query, key in itertools.permutations(people, 2):
        shared = set(np.unique(query.labels)) & set(np.unique(key.labels)) - {-1, 0}
        for organ in map(int, sorted(shared)):
            rows.append(organ_row(query, key, organ, rng))
    return rows


def organ_row(query: Person, key: Person, organ: int, rng: np.random.Generator) -> OrganRow:
    """The matches of one organ."""
    start = query.centre(organ)
    goal = key.centre(organ)
    voxels = draw_points(query.labels, [organ], POINTS, rng)[0]
    points = (voxels + 0.5) * query.volume.spacing
    random = key.body_points(200, rng)

    def error(matcher: Callable) -> float:
        return float(np.linalg.norm(matcher(start, query, key) - goal))

    def share_inside(matcher: Callable) -> float:
        return float(np.mean([key.label_at(matcher(p, query, key)) == organ for p in points]))

    _, score = match_millimetres(start, query.embedding, key.embedding)
    return OrganRow(
        query=query.volume.name,
        key=key.volume.name,
        organ=ORGANS[organ - 1],
        learned_mm=error(learned),
        learned_inside=share_inside(learned),
        body_mm=error(by_body),
        body_inside=share_inside(by_body),
        score=score,
        chance_mm=float(np.linalg.norm(random - goal, axis=1).mean()),
    )


def visible_ends(person: Person, organ: int) -> list[float | None]:
    """Height of the lower and the upper end of an organ in mm; None where the scan cuts it off."""
    slices = np.flatnonzero((person.labels == organ).any((1, 2)))
    if not len(slices):
        return [None, None]
    lower, upper = int(slices[0]), int(slices[-1])
    mm = person.volume.spacing[0]
    return [
        None if lower == 0 else lower * mm,
        None if upper == len(person.labels) - 1 else (upper + 1) * mm,
    ]


def height_offsets(query: Person, key: Person) -> list[float]:
    """How much higher key's slices of equal body height lie, mm, by every end seen in both."""
    offsets = []
    for name in LEVELS:
        organ = ORGANS.index(name) + 1
        for here, there in zip(visible_ends(query, organ), visible_ends(key, organ)):
            if here is not None and there is not None:
                offsets.append(there - here)
    return offsets


@dataclasses.dataclass
class HeightRow:
    """Matches of the middles of one organ's slices, of one ordered pair of people."""

    query: str
    key: str
    organ: str
    slices: int
    learned_mm: float
    body_mm: float
    level_mm: float  # spread of the offsets that give the height: how sure the goal is


def height_rows(people: list[Person]) -> list[HeightRow]:
    """One row for each ordered pair of people and organ, where heights are known."""
    rows = []
    for query, key in itertools.permutations(people, 2):
        offsets = height_offsets(query, key)
        if len(offsets) < 2:
            continue
        for organ in range(1, len(ORGANS) + 1):
            errors = errors_at_height(query, key, organ, float(np.median(offsets)))
            if errors:
                of_learned, of_body = np.mean(errors, axis=0)
                rows.append(
                    HeightRow(
                        query=query.volume.name,
                        key=key.volume.name,
                        organ=ORGANS[organ - 1],
                        slices=len(errors),
                        learned_mm=float(of_learned),
                        body_mm=float(of_body),
                        level_mm=float(np.std(offsets)),
                    )
                )
    return rows


def errors_at_height(
    query: Person, key: Person, organ: int, offset: float
) -> list[tuple[float, float]]:
    """Errors in mm of the learned match and of the body's, of one organ, slice by slice."""
    errors = []
    mm = query.volume.spacing[0]
    for z in range(0, len(query.labels), max(1, round(SLICE_STEP / mm))):
        other = round((z * mm + offset) / key.volume.spacing[0])
        here = middle_of_slice(query, organ, z)
        goal = middle_of_slice(key, organ, other)
        if here is None or goal is None:
            continue
        errors.append(
            (
                float(np.linalg.norm(learned(here, query, key) - goal)),
                float(np.linalg.norm(by_body(here, query, key) - goal)),
            )
        )
    return errors


def middle_of_slice(person: Person, organ: int, z: int) -> np.ndarray | None:
    """Centroid of an organ in an axial slice, (3,) mm; None where it is not."""
    if not 0 <= z < len(person.labels):
        return None
    places = np.argwhere(person.labels[z] == organ)
    if not len(places):
        return None
    y, x = places.mean(0)
    return (np.array([z, y, x]) + 0.5) * person.volume.spacing


def print_heights(rows: list[HeightRow]) -> None:
    """Means of every organ and of all over the slices, as Markdown."""
    print("| organ | slices | learned, mm | body, mm |")
    print("|---|---|---|---|")
    for organ in (*ORGANS, "all"):
        chosen = [row for row in rows if organ in (row.organ, "all")]
        if chosen:
            slices = [row.slices for row in chosen]
            ours = np.average([row.learned_mm for row in chosen], weights=slices)
            theirs = np.average([row.body_mm for row in chosen], weights=slices)
            print(f"| {organ} | {sum(slices)} | {ours:.1f} | {theirs:.1f} |")
    for row in {(r.query, r.key): r for r in rows}.values():
        print(f"height of {row.key} against {row.query}: spread {row.level_mm:.0f} mm")
    print()


def cycle_error(people: list[Person], rng: np.random.Generator) -> float:
    """Median distance (mm) of A -> B -> A over random points of the body."""
    distances = []
    for first, second in itertools.permutations(people, 2):
        for point in first.body_points(100, rng):
            match = learned(point, first, second)
            distances.append(return_distance(point, match, first.embedding, second.embedding))
    return float(np.median(distances))


def known_transform_error(people: list[Person], embed: Embed, rng: np.random.Generator) -> float:
    """Mean error (mm) of matches into the same person turned, enlarged and brighter."""
    drawn = Augmentation(
        angles=torch.tensor([[TURN, 0.0, 0.0]]).deg2rad(),
        scale=torch.tensor([ENLARGEMENT]),
        flips=torch.ones(1, 3),
        factor=torch.tensor([1.1]),
        shift=torch.tensor([0.02]),
    )
    cos = np.cos(np.deg2rad(TURN))
    sin = np.sin(np.deg2rad(TURN))
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])  # (z, y, x), input to output

    errors = []
    for person in people:
        image = torch.from_numpy(person.volume.image)[None]
        moved_image = augment(image, drawn, person.volume.spacing)[0].numpy().clip(0, 1.1)
        moved = embed(volume_of("moved", moved_image, person.volume.spacing))

        middle = np.array(image.shape[2:]) * person.volume.spacing / 2
        for point in person.body_points(200, rng):
            goal = ENLARGEMENT * turn @ (point - middle) + middle
            if (goal > 0).all() and (goal < 2 * middle).all():
                match, _ = match_millimetres(point, person.embedding, moved)
                errors.append(np.linalg.norm(match - goal))
    return float(np.mean(errors))


def stored_otherwise(image: Path, folder: Path) -> Path:
    """The same scan with coarser voxels, stored along S, L and A."""
    scan = nibabel.load(image)
    voxels = np.asarray(scan.dataobj, np.float32)
    size = [round(n / COARSER) for n in voxels.shape]
    factor = np.array(voxels.shape) / size
    offset = (factor - 1) / 2
    coarse = ndimage.affine_transform(
        voxels, np.diag(factor), offset, size, order=1, mode="nearest"
    )

    to_fine = np.block([[np.diag(factor), offset[:, None]], [np.zeros((1, 3)), 1]])
    affine = scan.affine @ to_fine
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt("SLA")
    )
    turned = nibabel.Nifti1Image(coarse.astype(np.int16), affine).as_reoriented(turn)
    nibabel.save(turned, folder / image.name)
    return folder / image.name


def storage_error(
    people: list[Person], data: Path, plans: dict, embed: Embed, rng: np.random.Generator
) -> dict:
    """How far matches move when the query's file has another spacing and orientation.

    Returns the median in mm and the share within a node's diagonal, of all matches and of those
    that alice-pretrain would take.
    """
    moved = []
    scores = []
    with tempfile.TemporaryDirectory() as folder:
        for query, key in itertools.permutations(people[:2], 2):
            image = stored_otherwise(data / f"images/{query.volume.name}.nii.gz", Path(folder))
            other = embed(
                volume_of("other", labeled_volume(image, None, plans)[0], query.volume.spacing)
            )
            for point in query.body_points(STORAGE_POINTS, rng):
                match, score = match_millimetres(point, query.embedding, key.embedding)
                other_match, _ = match_millimetres(point, other, key.embedding)
                moved.append(np.linalg.norm(match - other_match))
                scores.append(score)

    within = np.array(moved) <= np.linalg.norm(people[0].embedding.step)
    return {
        "storage_mm": float(np.median(moved)),
        "storage_within_grid": float(within.mean()),
        "storage_within_grid_taken": float(within[np.array(scores) >= MIN_SCORE].mean()),
        "storage_taken": int((np.array(scores) >= MIN_SCORE).sum()),
    }


def part_of(person: Person, start: int, stop: int, embed: Embed) -> Person:
    """The axial slices start to stop of a person."""
    image = person.volume.image[:, start:stop]
    volume = volume_of(person.volume.name, image, person.volume.spacing)
    return Person(volume, person.labels[start:stop], embed(volume))


def accepted(first: Person, second: Person, rng: np.random.Generator) -> float:
    """Share of random body points whose match alice-pretrain would take, both directions."""
    shares = []
    for query, key in ((first, second), (second, first)):
        scores = [
            match_millimetres(point, query.embedding, key.embedding)[1]
            for point in query.body_points(200, rng)
        ]
        shares.append(float(np.mean(np.array(scores) >= MIN_SCORE)))
    return sum(shares) / 2


def regions(people: list[Person], embed: Embed, rng: np.random.Generator) -> dict:
    """Matches taken between a chest and a pelvis, where none is right, and between two abdomens."""
    first, second = people[:2]
    with_liver = (first.labels == LIVER).any((1, 2))
    with_kidneys = np.isin(second.labels, KIDNEYS).any((1, 2))
    top = int(np.flatnonzero(with_liver)[-1])  # z runs upwards
    bottom = int(np.flatnonzero(with_kidneys)[0])

    chest = part_of(first, top, len(first.labels), embed)
    pelvis = part_of(second, 0, bottom, embed)
    abdomen = part_of(first, 0, top, embed)
    other_abdomen = part_of(second, bottom, len(second.labels), embed)
    return {
        "accepted_chest_pelvis": accepted(chest, pelvis, rng),
        "accepted_abdomens": accepted(abdomen, other_abdomen, rng),
    }


def time_and_size(person: Person, embed: Embed, rng: np.random.Generator) -> dict:
    """Time of a match and size of the embedding for a volume of FLARE's size.

    From a memory-mapped file, with one thread.
    """
    box = tuple(slice(start, stop) for start, stop in zip(*person.volume.body.box))
    image = person.volume.image[(slice(None), *box)]
    spacing = tuple(m / n for m, n in zip(FLARE_SIZE, image.shape[1:]))
    volume = volume_of("flare", image, spacing)

    with tempfile.TemporaryDirectory() as name, threadpool_limits(1):
        folder = Path(name)
        save_embedding(folder, "flare", embed(volume), {})
        size = (folder / "flare.npy").stat().st_size / 1e6
        embedding = open_embedding(folder, "flare")

        points = random_points(volume, 300, rng)
        start = time.perf_counter()
        for point in points:
            match_millimetres(point, embedding, embedding)
        seconds = (time.perf_counter() - start) / len(points)
    return {"ms_per_match": seconds * 1000, "mb_per_volume": size}


def trade_off(people: list[Person], network: torch.nn.Module, config: dict) -> None:
    """Print accuracy against size on the disk.

    Varied are the step between nodes, the width (principal axes of the vectors) and the precision.
    """
    print("| step mm | width | precision | MB, FLARE size | organ centroids, mm | inside |")
    print("|---|---|---|---|---|---|")
    for step in (config["step"], 1.5 * config["step"], 2 * config["step"]):
        stored = [body_vectors(network, p.volume, config["voxel"], step, CPU) for p in people]
        in_body = np.concatenate([v[:, v.any(0)].T for v, _, _ in stored])
        axes = np.linalg.svd(in_body[::7], full_matrices=False)[2]  # (C, C)

        widths = (len(axes), len(axes) // 2, len(axes) // 4)
        for width, dtype in itertools.product(widths, (np.float32, np.float16, np.int8)):
            for person, (vectors, origin, steps) in zip(people, stored):
                short = np.einsum("wc,czyx->wzyx", axes[:width], vectors)
                short /= np.maximum(np.linalg.norm(short, axis=0), 1e-6)
                person.embedding = pack(short, origin, steps, dtype)

            rows = organ_rows(people, np.random.default_rng(0))
            precision = np.dtype(dtype)
            nodes = np.prod(FLARE_SIZE) / step**3
            megabytes = nodes * (1 + 1 / 27) * width * precision.itemsize / 1e6
            print(
                f"| {step:g} | {width} | {precision.name} | {megabytes:.2f} | "
                f"{mean_of(rows, 'learned_mm'):.1f} | {mean_of(rows, 'learned_inside'):.2f} |",
                flush=True,
            )


def mean_of(rows: list[OrganRow], column: str) -> float:
    return float(np.mean([getattr(row, column) for row in rows]))


def print_table(rows: list[OrganRow]) -> None:
    """Means of every organ and of all, as Markdown."""
    print("| organ | pairs | " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * (len(COLUMNS) + 2))
    for organ in (*ORGANS, "all"):
        chosen = [row for row in rows if organ in (row.organ, "all")]
        if chosen:
            cells = [f"{mean_of(chosen, column):.2f}" for column in COLUMNS]
            print(f"| {organ} | {len(chosen)} | " + " | ".join(cells) + " |")

    taken = [row for row in rows if row.score >= MIN_SCORE]
    print(
        f"\n{len(taken)} of {len(rows)} centroids reach the score {MIN_SCORE}: "
        f"learned {mean_of(taken, 'learned_mm'):.1f} mm, body {mean_of(taken, 'body_mm'):.1f} mm\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("index", type=Path, metavar="INDEX")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument(
        "--trade-off", action="store_true", help="also print accuracy against size of the index"
    )
    arguments = parser.parse_args()

    network, config = load_network(arguments.index)
    plans = json.loads((arguments.index.parent / "AlicePretrainPlans.json").read_text())

    def embed(volume: Volume) -> Embedding:
        return embed_volume(network, volume, config["voxel"], config["step"], CPU)

    people = [read_person(name, arguments.data, plans, embed) for name in PEOPLE]
    rng = np.random.default_rng(0)
    rows = organ_rows(people, rng)
    print_table(rows)
    heights = height_rows(people)
    print_heights(heights)

    result = {column: mean_of(rows, column) for column in COLUMNS}
    result["cycle_mm"] = cycle_error(people, rng)
    result["known_transform_mm"] = known_transform_error(people, embed, rng)
    result |= storage_error(people, arguments.data, plans, embed, rng)
    result |= regions(people, embed, rng)
    result["grid_mm"] = float(np.max(people[0].embedding.step))
    result |= time_and_size(people[0], embed, rng)
    print(json.dumps(result, indent=2))

    if arguments.trade_off:
        trade_off(people, network, config)
    if arguments.json:
        content = {
            **result,
            "rows": [dataclasses.asdict(row) for row in rows],
            "heights": [dataclasses.asdict(row) for row in heights],
        }
        arguments.json.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
