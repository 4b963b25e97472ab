"""The work of alice-check: every file of a raw dataset, on screen, in JSON and as thumbnails."""

from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from alice_nnunet.checks.channels import channels_text, check_channel_names
from alice_nnunet.checks.findings import Decisions, Finding, settled
from alice_nnunet.checks.formats import open_image
from alice_nnunet.checks.labels import check_not_all_empty, label_values
from alice_nnunet.checks.voxels import AIR, Window, check_extent, content_digest, same_content
from alice_nnunet.data.body import find_body
from alice_nnunet.datasets.labeled_case import LabeledCase, channel_windows, check_case
from alice_nnunet.datasets.raw_dataset import (
    RawDataset,
    find_stray_labels,
    open_raw_dataset,
    passed_over_text,
)
from alice_nnunet.environment import nnunet_folder
from alice_nnunet.errors import UserError
from alice_nnunet.files import require_writable, write_json_atomically
from alice_nnunet.geometry import Spacing, triple
from alice_nnunet.pictures import save_figure, show_axial
from alice_nnunet.workers import run_each

REPORT = "alice_check.json"
PAGE = "alice_check.png"

COARSE_MM = 4.0  # distance of the voxels in which the body is sought
BODY_HU = -200.0
SHOWN = 60  # cases on the page, those with findings first
COLUMNS = 6
SHOWN_HU = (-160.0, 240.0)  # black and white


@dataclass(frozen=True)
class CheckedCase:
    """What was found in a case.

    Attributes:
        findings: errors and warnings.
        digest: content_digest of the first channel; "" if it cannot be read.
        slice: the middle axial slice of the first channel, (Y, X), 0 to 1; None if unreadable.
        spacing: mm, (z, y, x).
    """

    findings: list[Finding] = field(default_factory=list)
    digest: str = ""
    slice: np.ndarray | None = None
    spacing: Spacing = (1.0, 1.0, 1.0)


def check_all(dataset: str, processes: int, decisions: Decisions) -> None:
    """Check a dataset, labeled or not, and write the report and the page.

    Raises:
        UserError: files cannot be used as they are, or there is no such dataset.
    """
    raw = open_raw_dataset(dataset, test_images=True)
    require_writable(raw.preprocessed, "nnUNet_preprocessed")
    names = raw.dataset_json["channel_names"]
    print(channels_text(names), flush=True)

    windows = channel_windows(raw.dataset_json)
    has_labels = isinstance(raw.dataset_json.get("labels"), dict)
    values = label_values(raw.dataset_json) if has_labels else set()
    cases = {case: with_label(raw, case, has_labels) for case in raw.cases}
    if has_labels:
        raw.passed_over.update(stray_labels(raw, cases))
    if raw.passed_over:
        print(passed_over_text(raw.passed_over), flush=True)

    jobs = {case: (files, windows, values, decisions) for case, files in cases.items()}

    results = {}
    done = run_each(check_one, jobs, processes)
    for case, result in tqdm(done, "checking", len(jobs), unit="case", disable=None):
        results[case] = result

    found = {case: list(results[case].findings) for case in sorted(results)}
    found["dataset.json"] = settled(check_channel_names(names), decisions)
    for name, reason in raw.rejected.items():
        found[name] = [Finding("incomplete", name, reason)]
    add_same_content(found, results)
    labeled = {case: found[case] for case in results if cases[case].label is not None}
    found["labelsTr"] = check_not_all_empty(labeled)
    found = {case: findings for case, findings in found.items() if findings}

    for findings in found.values():
        for finding in findings:
            print(f"{finding.severity.upper()}: {finding.text}", flush=True)
    finish(raw, found, results, decisions)


def with_label(raw: RawDataset, case: str, has_labels: bool) -> LabeledCase:
    """The files of a case, with the place of its label if it should have one."""
    images = raw.cases[case]
    listed = raw.dataset_json.get("dataset", {}).get(case, {})
    folder = images[0].parent
    if not has_labels:
        return LabeledCase(tuple(images), None)

    if "label" in listed:
        root = nnunet_folder("nnUNet_raw") / raw.name
        return LabeledCase(tuple(images), root / listed["label"])
    label = folder.with_name(folder.name.replace("images", "labels")) / (
        case + raw.dataset_json["file_ending"]
    )
    wanted = folder.name == "imagesTr" or label.exists()
    return LabeledCase(tuple(images), label if wanted else None)


def stray_labels(raw: RawDataset, cases: dict[str, LabeledCase]) -> dict[str, str]:
    """Labels without image, with reasons."""
    folder = nnunet_folder("nnUNet_raw") / raw.name
    used = {case.label for case in cases.values() if case.label is not None}
    names = [*cases, *raw.rejected]
    return find_stray_labels(folder, raw.dataset_json, names, used)


def check_one(
    case: LabeledCase, windows: list[Window | None], values: set[int], decisions: Decisions
) -> CheckedCase:
    """Check one case in a process of its own."""
    if case.label is not None and not case.label.exists():
        missing = Finding(
            "label-missing", case.label.name, f"there is no {case.label}", "a label for each image"
        )
        case = LabeledCase(case.images, None)
        findings = [missing, *check_case(case, windows, values, decisions)]
        labeled = True
    else:
        findings = check_case(case, windows, values, decisions)
        labeled = case.label is not None

    try:
        voxels, spacing = canonical_voxels(case.images[0])
    except Exception:  # the findings say why
        return CheckedCase(findings)

    name = case.images[0].name
    if not labeled and not any(f.is_error and f.file == name for f in findings):
        findings += settled(size_findings(voxels, spacing, windows[0], name), decisions)

    middle = voxels[len(voxels) // 2]
    step = max(1, max(middle.shape) // 128)
    return CheckedCase(
        findings,
        content_digest(voxels[None], spacing),
        as_grey(middle[::step, ::step], windows[0]),
        (spacing[0], spacing[1] * step, spacing[2] * step),
    )


def canonical_voxels(path: Path) -> tuple[np.ndarray, Spacing]:
    """The voxels (Z, Y, X) of a file, turned to RAS, and the spacing in mm."""
    image = open_image(path)
    if image.ndim > 3:
        voxels = np.asarray(image.dataobj).reshape(image.shape[:3])
        image = nibabel.Nifti1Image(voxels, image.affine)
    turned = nibabel.as_closest_canonical(image)
    spacing = triple(float(s) for s in turned.header.get_zooms()[2::-1])
    return np.asarray(turned.dataobj, np.float32).T, spacing


def as_grey(plane: np.ndarray, window: Window | None) -> np.ndarray:
    """A slice as 0..1: the window of CT that looks like HU, else from the least to the largest."""
    finite = np.nan_to_num(plane, nan=AIR, posinf=AIR, neginf=AIR)
    low, high = (finite.min(), finite.max()) if window is None else SHOWN_HU
    if finite.min() >= 0 or finite.max() <= low:  # not HU
        low, high = finite.min(), finite.max()
    return np.clip((finite - low) / max(high - low, 1e-6), 0, 1)


def size_findings(
    image: np.ndarray, spacing: Spacing, window: Window | None, name: str
) -> list[Finding]:
    """A finding if an unlabeled volume, or the body in CT, is a fragment. image: (Z, Y, X)."""
    extent = tuple(n * s for n, s in zip(image.shape, spacing))[::-1]
    findings = check_extent(extent, "the volume", name)
    if findings or window is None:
        return findings

    steps = [max(1, round(COARSE_MM / s)) for s in spacing]
    coarse = image[tuple(slice(None, None, step) for step in steps)] > BODY_HU
    edges = triple(step * s for step, s in zip(steps, spacing))
    try:
        body = find_body(coarse, edges)
    except ValueError as error:
        return [Finding("empty", name, str(error))]
    size = tuple((stop - start) * edge for start, stop, edge in zip(*body.box, edges))
    return check_extent(size[::-1], "the body", name)


def add_same_content(found: dict[str, list[Finding]], results: dict[str, CheckedCase]) -> None:
    """Add a warning to each case that holds the same voxels as another one."""
    digests = {case: result.digest for case, result in results.items() if result.digest}
    for first, others in same_content(digests).items():
        for case in others:
            text = f"the same voxels as {first}"
            finding = Finding("same-content", case, text, remedy="Remove one", severity="warning")
            found[case].append(finding)


def finish(
    raw: RawDataset,
    found: dict[str, list[Finding]],
    results: dict[str, CheckedCase],
    decisions: Decisions,
) -> None:
    """Write report and page, and print or raise the result."""
    report = {
        "cases": sorted(results),
        "findings": {case: [f.to_dict() for f in findings] for case, findings in found.items()},
        "passed_over": raw.passed_over,
        "decisions": decisions.to_dict(),
    }
    write_json_atomically(raw.preprocessed / REPORT, report)
    save_figure(thumbnails(found, results), raw.preprocessed / PAGE)

    errors = [f for findings in found.values() for f in findings if f.is_error]
    wrong = sum(any(f.is_error for f in findings) for findings in found.values())
    warned = sum(any(f.severity == "warning" for f in of_one) for of_one in found.values())
    written = f"written: {raw.preprocessed / REPORT} and {PAGE}"
    if errors:
        raise UserError(
            f"{raw.name}: {wrong} cases or files of {len(results)} cases cannot be used as they "
            f"are, the first: {errors[0].text}; {written}"
        )
    print(f"{raw.name}: {len(results)} cases can be used, {warned} with warnings; {written}")


def thumbnails(found: dict[str, list[Finding]], results: dict[str, CheckedCase]) -> Figure:
    """A page with a slice of each case; names are red for errors and orange for warnings."""
    order = sorted(results, key=lambda case: (case not in found, case))[:SHOWN]
    rows = -(-len(order) // COLUMNS) or 1
    figure = Figure((2 * COLUMNS, 2.2 * rows))
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()

    for axis in axes:
        axis.set_axis_off()
    for axis, case in zip(axes, order):
        result = results[case]
        colour = "black"
        severities = {finding.severity for finding in found.get(case, ())}
        if "error" in severities:
            colour = "red"
        elif "warning" in severities:
            colour = "darkorange"
        axis.set_title(case, fontsize=7, color=colour)
        if result.slice is not None:
            show_axial(axis, result.slice, result.spacing)
    return figure
