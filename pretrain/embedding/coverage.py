"""What each scan of an index shows and which others match it, for pairs and for people."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alice_nnunet.coverage.body_axis import BodyAxis
from alice_nnunet.coverage.partners import (
    FALSE_MATCHES,
    calibrate,
    draw_anchors,
    find_anchors,
    make_partners,
    threshold_of,
)
from alice_nnunet.coverage.picture import coverage_figure
from alice_nnunet.coverage.sides import Flipped, Sides
from alice_nnunet.coverage.surroundings import Surroundings
from alice_nnunet.data.partners import Partners
from alice_nnunet.data.volumes import Volume, case_properties, open_volume
from alice_nnunet.files import file_sha256, write_json_atomically
from alice_nnunet.names import COVERAGE, COVERAGE_PICTURE, FINAL, PARTNERS
from alice_nnunet.pictures import save_figure

VERSION = 2  # of what is computed here; a higher one computes it again
SEED = 0
USUAL_THRESHOLD = 0.7  # where an index is too small to calibrate one
FRAGMENT = 30.0  # mm; a body that is shorter than this along an axis is a fragment
SHOWN_NAMES = 5  # in a line on the screen

# What is said of a scan that lies another way round than most. It is not paired with those.
TURNED = "seems to be upside down: turned from head to feet, it would match others better"
MIRRORED = (
    "seems to have left and right exchanged, or shows the opposite limb: mirrored, it would match "
    "others better"
)

Flip = Callable[[str, tuple[int, ...]], Flipped]


@dataclass(frozen=True)
class Coverage:
    """What was found out about the scans of an index.

    Attributes:
        table: Which scans show the same places.
        axis: Where the scans lie along the body.
        sides: Which way round they lie.
        anchors: Places that each scan was compared with.
        false_scores: Scores of known false matches, sorted.
    """

    table: Partners
    axis: BodyAxis
    sides: Sides
    anchors: Surroundings
    false_scores: np.ndarray


def update_coverage(
    volumes: Path, folder: Path, cases: list[str], flipped: Flip | None = None
) -> None:
    """Compute the coverage where the index has none, or has changed since.

    Args:
        volumes: Folder of the preprocessed cases.
        folder: Of the index, for the results too.
        cases: That are indexed.
        flipped: Gives a case with some axes reversed, see make_partners.
    """
    contents = np.array([case_properties(volumes, case)["alice"]["crc32"] for case in cases])
    made_from = state_of(folder, cases, contents)
    if is_current(folder, made_from):
        return

    coverage = compute_coverage(folder, cases, contents, flipped)
    coverage.table.save(folder / PARTNERS)

    scans = {case: open_volume(volumes, case) for case in cases}
    report = describe(coverage, scans)
    write_json_atomically(folder / COVERAGE, {"made_from": made_from, **report})
    draw_report(report, scans, folder / COVERAGE_PICTURE)
    print_report(report, folder)


def state_of(folder: Path, cases: list[str], contents: np.ndarray) -> str:
    """A checksum of all that the coverage depends on."""
    digest = hashlib.sha256(f"{VERSION} {file_sha256(folder / FINAL)}".encode())
    for case, content in zip(cases, contents):
        digest.update(f"{case} {content}".encode())
    return digest.hexdigest()


def is_current(folder: Path, made_from: str) -> bool:
    """Whether the files that are there were made from this state of the index."""
    try:
        return (
            json.loads((folder / COVERAGE).read_text())["made_from"] == made_from
            and (folder / PARTNERS).is_file()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def compute_coverage(
    folder: Path, cases: list[str], contents: np.ndarray, flipped: Flip | None = None
) -> Coverage:
    """Compare all scans of an index, by random numbers that depend on nothing else."""
    rng = np.random.default_rng(SEED)
    anchors = draw_anchors(folder, cases, rng)
    signatures = find_anchors(folder, cases, anchors)
    false_scores = calibrate(folder, cases, rng)
    threshold = threshold_of(false_scores, USUAL_THRESHOLD)
    table, axis, sides = make_partners(folder, cases, contents, signatures, threshold, rng, flipped)
    return Coverage(table, axis, sides, anchors, false_scores)


def describe(coverage: Coverage, scans: dict[str, Volume]) -> dict:
    """The coverage in plain values, for COVERAGE.

    Args:
        coverage: Of the index.
        scans: Its volumes, in the table's order.
    """
    table = coverage.table
    axis = coverage.axis
    sides = coverage.sides
    cases = list(scans)
    eligible = table.eligible(cases, cases, table.threshold)
    places = np.isfinite(table.positions[..., 0]).sum(1)
    same = same_content(table)
    copies = {case for cases_of_scan in same for case in cases_of_scan}
    agreement = [None if np.isnan(value) else round(float(value), 3) for value in axis.agreement]

    entries = {}
    without_partner = {}
    for number, (case, volume) in enumerate(scans.items()):
        extent = body_extent(volume)
        matched = int(eligible.has_key[number].sum())
        partners = int(eligible.allowed[number].any(0).sum())

        start = stop = None
        if axis.groups[number] >= 0:
            lowest = volume.body.box[0][0] * volume.spacing[0]
            start = round(float(lowest + axis.offsets[number]), 1)
            stop = round(start + extent[0], 1)

        entries[case] = {
            "group": int(axis.groups[number]),
            "start_mm": start,
            "stop_mm": stop,
            "body_mm": [round(edge, 1) for edge in extent],
            "agreement": agreement[number],
            "upside_down": bool(axis.upside_down[number] or sides.turned[number]),
            "mirrored": bool(sides.mirrored[number]),
            "matched_places": round(matched / max(1, int(places[number])), 3),
            "partners": partners,
        }
        if not matched:
            without_partner[case] = why_unmatched(extent, entries[case], case in copies)

    reached = float((coverage.false_scores >= table.threshold).mean())
    return {
        "threshold": round(table.threshold, 4),
        "expected_false_matches": round(reached, 4) if len(coverage.false_scores) else None,
        "wanted_false_matches": FALSE_MATCHES,
        "scans": entries,
        "without_partner": without_partner,
        "same_content": same,
    }


def body_extent(volume: Volume) -> list[float]:
    """mm of the box around the body, (z, y, x)."""
    start, stop = volume.body.box
    return [float((b - a) * s) for a, b, s in zip(start, stop, volume.spacing)]


def why_unmatched(extent: list[float], entry: dict, has_copy: bool) -> str:
    """The likely reason why a scan matches nobody.

    Args:
        extent: Of the body, mm.
        entry: What is known of the scan.
        has_copy: Whether another case holds the same scan.
    """
    if entry["upside_down"]:
        return f"it {TURNED}"
    if entry["mirrored"]:
        return f"it {MIRRORED}"
    if min(extent) < FRAGMENT:
        return f"a fragment: its body is {min(extent):.0f} mm long along one axis"
    if has_copy:
        return (
            "another case holds the same scan, which it is never paired with, and no further scan "
            "shows the same part of the body"
        )
    return "it shows a part of the body that no other scan does, or it is another modality"


def same_content(table: Partners) -> list[list[str]]:
    """Cases that hold the same scan."""
    by_content: dict[int, list[str]] = {}
    for case, content in zip(table.cases, table.contents):
        by_content.setdefault(int(content), []).append(str(case))
    return [cases for cases in by_content.values() if len(cases) > 1]


def draw_report(report: dict, scans: dict[str, Volume], path: Path) -> None:
    """Draw the scans along the body, with pictures of those at the ends of the largest group."""
    placed = {case: e for case, e in report["scans"].items() if e["start_mm"] is not None}
    largest = {case: entry for case, entry in placed.items() if entry["group"] == 0}

    ends = []
    if largest:
        lowest = min(largest, key=lambda case: largest[case]["start_mm"])
        highest = max(largest, key=lambda case: largest[case]["stop_mm"])
        for case in (lowest, highest):
            volume = scans[case]
            start, stop = volume.body.box
            middle = (start[1] + stop[1]) // 2
            plane = volume.image[:1, :, middle : middle + 1][0, :, 0]
            ends.append((case, plane, volume.spacing))

    alone = len(report["scans"]) - len(placed)
    save_figure(coverage_figure(placed, ends, alone), path)


def print_report(report: dict, folder: Path) -> None:
    """Say what people must know of it."""
    scans = report["scans"]
    alone = report["without_partner"]
    print(
        f"{len(scans) - len(alone)} of {len(scans)} scans match another one (score "
        f"{report['threshold']:.2f}, which {report['wanted_false_matches']:.0%} of false matches "
        f"reach): {folder / COVERAGE_PICTURE}",
        flush=True,
    )

    for case, reason in list(alone.items())[:SHOWN_NAMES]:
        print(f"  {case} matches no other scan: {reason}", flush=True)
    if len(alone) > SHOWN_NAMES:
        print(f"  and {len(alone) - SHOWN_NAMES} more", flush=True)

    for case, entry in scans.items():
        if entry["upside_down"]:
            print(f"WARNING: {case} {TURNED}", flush=True)
        if entry["mirrored"]:
            print(f"WARNING: {case} {MIRRORED}", flush=True)
    for cases in report["same_content"][:SHOWN_NAMES]:
        names = ", ".join(cases[:SHOWN_NAMES]) + (" ..." if len(cases) > SHOWN_NAMES else "")
        print(
            f"WARNING: {len(cases)} cases have equal content and are never paired: {names}",
            flush=True,
        )
