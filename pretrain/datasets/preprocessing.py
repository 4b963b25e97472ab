"""Preprocess the unlabeled volumes of an nnU-Net dataset, so that crops can be read from them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from alice_nnunet.checks.channels import channels_text, check_channel_names
from alice_nnunet.checks.findings import (
    NO_DECISIONS,
    BadImage,
    Decisions,
    Finding,
    raise_errors,
    settled,
)
from alice_nnunet.checks.formats import first_line
from alice_nnunet.checks.voxels import check_extent, content_digest, same_content
from alice_nnunet.data.body import Body, find_body
from alice_nnunet.data.volumes import (
    case_names,
    case_properties,
    check_volume,
    remove_partial,
    save_volume,
)
from alice_nnunet.datasets.raw_dataset import RawDataset, open_raw_dataset, passed_over_text
from alice_nnunet.datasets.raw_image import check_headers, check_voxels, read_case
from alice_nnunet.errors import NO_SPACE, UserError
from alice_nnunet.files import locked, require_space, require_writable, write_json_atomically
from alice_nnunet.geometry import Spacing, Triple
from alice_nnunet.model.presets import CROPS
from alice_nnunet.names import (
    CONFIGURATION,
    PREPROCESS_LOCK,
    PREPROCESS_REPORT,
    PRETRAIN_PLANS,
)
from alice_nnunet.pretrain.datasets.pretrain_plans import (
    PRESET,
    channel_windows,
    load_plans,
    make_plans,
    plans_sha256,
    spacing_of,
)
from alice_nnunet.pretrain.datasets.shares import has_test_cases, print_shares
from alice_nnunet.text import millimetres
from alice_nnunet.workers import run_each, with_progress

VOLUMES = f"{PRETRAIN_PLANS}_{CONFIGURATION}"  # folder of the cases, in new plans
REPORT = PREPROCESS_REPORT

# Cubic resampling leaves ripples of this size in the air beside the skin, in units of the window.
RINGING = 0.01


@dataclass(frozen=True)
class CaseResult:
    """What became of a case.

    Attributes:
        reason: why it could not be used; None if it was preprocessed.
        warnings: what is remarkable in it, one line each.
        digest: content_digest of its voxels; "" if an older version preprocessed it.
    """

    reason: str | None = None
    warnings: tuple[str, ...] = ()
    digest: str = ""


def preprocess_dataset(  # noqa: PLR0913 - the options of alice-preprocess
    dataset: str | int,
    processes: int,
    overwrite: bool = False,
    verify: bool = False,
    spacing: Spacing | None = None,
    patch_size: Triple | None = None,
    preset: str | None = None,
    test_images: bool = False,
    decisions: Decisions = NO_DECISIONS,
) -> dict:
    """Preprocess the cases of a raw dataset that are not finished yet.

    Args:
        dataset: ID or DatasetXXX_NAME.
        processes: number of processes; 1 works in the present one.
        overwrite: remove earlier results and repeat every case.
        verify: read the finished cases and repeat the damaged ones.
        spacing: mm, (z, y, x); None for that of existing plans, or the default.
        patch_size: voxels, (z, y, x); None as for spacing.
        preset: tiny, small or paper, for what is None of these two.
        test_images: use imagesTs too. Where it was used before, it is without being asked for.
        decisions: what to do with files that leave a choice.

    Returns:
        The report, as written beside the plans: {"ok": [case, ...], "failed": {case: reason},
        "warnings": {case: [text, ...]}, "passed_over": {file: reason}, "decisions": {...}}.

    Raises:
        UserError: the user can correct the cause, or no case could be used.
    """
    raw = open_raw_dataset(dataset, test_images)
    if not overwrite and has_test_cases(raw.name, raw.preprocessed / VOLUMES):
        raw = open_raw_dataset(dataset, test_images=True)
    name_warnings = check_channels(raw, decisions)
    report_path = raw.preprocessed / REPORT

    with working_in(raw.preprocessed):
        plans = settle_plans(raw, overwrite, spacing, patch_size, preset)
        folder = prepare_folder(raw, plans, overwrite)

        damaged = remove_damaged(folder, processes) if verify else {}
        good = finished_cases(folder, plans)

        if raw.passed_over:
            print(passed_over_text(raw.passed_over))
        failed = dict(raw.rejected)
        for case, reason in damaged.items():
            if case not in raw.cases:
                failed[case] = f"damaged, and its images are no longer in nnUNet_raw ({reason})"

        report_path.unlink(missing_ok=True)  # a report means that preprocessing is complete
        print_kept(good, raw)
        preprocess_cases(raw, (folder, plans, decisions), processes, good, failed)

        done = {case: result for case, result in sorted(good.items()) if case in raw.cases}
        warnings = case_warnings(done)
        if name_warnings:
            warnings["dataset.json"] = name_warnings
        report = {
            "ok": list(done),
            "failed": dict(sorted(failed.items())),
            "warnings": warnings,
            "passed_over": raw.passed_over,
            "decisions": decisions.to_dict(),
        }
        write_json_atomically(report_path, report)

    if not report["ok"]:
        raise UserError(
            f"none of {len(failed)} cases of {raw.name} could be used; "
            f"{report_path} lists the reasons"
        )
    print(
        f"{raw.name}: {len(report['ok'])} cases good, {len(failed)} failed{counted(report)}, "
        f"{millimetres(spacing_of(plans))}; report: {report_path}"
    )
    print_shares(raw.name, set(report["ok"]), set(report["failed"]))
    return report


def check_channels(raw: RawDataset, decisions: Decisions) -> list[str]:
    """Print which channels are CT. Returns warnings on their names.

    Raises UserError if nnU-Net does not treat a channel as CT whose name says that it is.
    """
    names = raw.dataset_json["channel_names"]
    print(channels_text(names))

    findings = settled(check_channel_names(names), decisions)
    for finding in findings:
        if finding.is_error:
            raise UserError(f"{raw.name}, {finding.text}")
    return [finding.text for finding in findings]


def case_warnings(done: dict[str, CaseResult]) -> dict[str, list[str]]:
    """The warnings on each case, and on cases of equal content, which are printed."""
    warnings = {case: list(result.warnings) for case, result in done.items() if result.warnings}

    digests = {case: result.digest for case, result in done.items() if result.digest}
    for first, others in same_content(digests).items():
        for case in others:
            text = f"the same voxels as {first}: remove one of the two"
            print(f"WARNING: {case}: {text}")
            warnings.setdefault(case, []).append(text)
    return warnings


def counted(report: dict) -> str:
    """The numbers of warnings and of files that were passed over, where there are any."""
    text = ""
    if report["warnings"]:
        text += f", {len(report['warnings'])} with warnings"
    if report["passed_over"]:
        text += f", {len(report['passed_over'])} files passed over"
    return text


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Make a folder of preprocessed data and keep other processes from preprocessing into it."""
    require_writable(folder, "nnUNet_preprocessed")
    with locked(folder / PREPROCESS_LOCK):
        yield


def settle_plans(
    raw: RawDataset,
    overwrite: bool,
    spacing: Spacing | None,
    patch_size: Triple | None,
    preset: str | None = None,
) -> dict:
    """Read the plans on disk, which may have been edited by hand, or write new ones.

    Raises UserError if spacing or patch_size differ from existing plans, unless overwrite is set.
    A preset's crops are no reason: one may cut others from the same volumes.
    """
    path = raw.preprocessed / f"{PRETRAIN_PLANS}.json"

    if path.exists():
        plans = load_plans(path, raw.dataset_json)
        configuration = plans["configurations"][CONFIGURATION]

        wanted = spacing or (CROPS[preset].spacing if preset else None)
        requested = {"spacing": wanted, "patch_size": patch_size}
        different = [
            f"{path} says {key} {configuration[key]}, but {list(value)} was requested"
            for key, value in requested.items()
            if value and list(value) != list(configuration[key])
        ]
        if not different:
            return plans
        if not overwrite:
            raise UserError(
                f"{' and '.join(different)}. To change it and repeat every case, add --overwrite"
            )

        if not preset:
            spacing = spacing or tuple(configuration["spacing"])
            patch_size = patch_size or tuple(configuration["patch_size"])

    crops = CROPS[preset or PRESET]
    made_for = None if spacing else preset or PRESET
    plans = make_plans(raw, spacing or crops.spacing, patch_size or crops.size, made_for)
    write_json_atomically(path, plans)
    return plans


def prepare_folder(raw: RawDataset, plans: dict, overwrite: bool) -> Path:
    """Make the folder of the cases and remove leftovers of a killed run, or all with overwrite."""
    folder = raw.preprocessed / plans["configurations"][CONFIGURATION]["data_identifier"]

    if overwrite:
        (raw.preprocessed / REPORT).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    remove_partial(folder)

    dataset_json = raw.preprocessed / "dataset.json"
    if not dataset_json.exists():
        write_json_atomically(dataset_json, raw.dataset_json)
    return folder


def finished_cases(folder: Path, plans: dict) -> dict[str, CaseResult]:
    """Cases that were preprocessed by these plans. Raises UserError if one was made by others."""
    finished = {}

    for case in case_names(folder):
        try:
            entries = case_properties(folder, case)["alice"]
        except UserError:
            continue  # damaged: it is made again

        if entries["plans_sha256"] != plans_sha256(plans):
            raise UserError(
                f"{PRETRAIN_PLANS}.json has changed since {case} was preprocessed in {folder}: "
                f"undo the change, or repeat every case with --overwrite"
            )
        warnings = tuple(entries.get("warnings", ()))
        finished[case] = CaseResult(None, warnings, entries.get("digest", ""))

    return finished


def remove_damaged(folder: Path, processes: int) -> dict[str, str]:
    """Read all finished cases and remove the damaged ones. Returns the reason for each of them."""
    jobs = {case: (folder, case) for case in case_names(folder)}
    damaged = {}

    for case, reason in with_progress(
        run_each(check_volume, jobs, processes), "verifying", len(jobs)
    ):
        if reason:
            tqdm.write(f"{case}: {reason}")
            (folder / f"{case}.pkl").unlink(missing_ok=True)
            damaged[case] = reason

    return damaged


def print_kept(good: dict[str, CaseResult], raw: RawDataset) -> None:
    """Print how many cases need not be repeated."""
    finished = len(good.keys() & raw.cases.keys())
    if finished:
        print(f"{finished} of {len(raw.cases)} cases are already preprocessed by these plans")

    orphans = len(good.keys() - raw.cases.keys())
    if orphans:
        print(f"{orphans} preprocessed cases have no images in nnUNet_raw any more; they are kept")


def preprocess_cases(
    raw: RawDataset,
    rules: tuple[Path, dict, Decisions],
    processes: int,
    good: dict[str, CaseResult],
    failed: dict[str, str],
) -> None:
    """Preprocess all cases but the good ones. Adds each to good, or to failed with the reason.

    Args:
        raw: the dataset.
        rules: folder of the results, plans, and decisions of the user.
        processes: number of processes.
        good: by case.
        failed: reasons by case.
    """
    for name, reason in failed.items():
        tqdm.write(f"{name}: {reason}")

    jobs = {
        case: (case, files, raw.dataset_json, *rules)
        for case, files in raw.cases.items()
        if case not in good
    }
    folder, plans, decisions = rules
    needed = fewest_bytes(raw, list(jobs), plans, decisions)
    require_space(folder, needed, f"{len(jobs)} preprocessed cases")
    results = run_each(preprocess_case, jobs, processes)

    for case, result in with_progress(results, "preprocessing", len(jobs)):
        if result.reason:
            tqdm.write(f"{case}: {result.reason}")
            failed[case] = result.reason
            continue

        for text in result.warnings:
            tqdm.write(f"WARNING: {text}")
        good[case] = result


def fewest_bytes(
    raw: RawDataset, cases: list[str], plans: dict, decisions: Decisions = NO_DECISIONS
) -> int:
    """What the volumes of cases take on a disk at least, by the sizes in their headers.

    Those of the CT tried took 1.6 to 3.4 bytes a voxel. Air takes nearly nothing. Cases with an
    error in a header count as nothing: sizes in another unit would fill any disk.
    """
    spacing = np.array(spacing_of(plans))
    voxels = 0.0
    for case in cases:
        geometries, findings = check_headers(raw.cases[case], decisions)
        if not any(finding.is_error for finding in findings):
            extents = [geometry.extent.prod() for geometry in geometries.values()]
            voxels += sum(extents) / spacing.prod()
    return int(voxels)


def preprocess_case(
    case: str,
    files: list[Path],
    dataset_json: dict,
    folder: Path,
    plans: dict,
    decisions: Decisions = NO_DECISIONS,
) -> CaseResult:
    """Preprocess one case into folder."""
    try:
        manager = PlansManager(plans)
        configuration = manager.get_configuration(CONFIGURATION)
        names = [path.name for path in files]

        raw_image, properties, findings = read_case(
            files, manager.image_reader_writer_class(), decisions
        )
        spacing = properties["spacing"]
        findings += check_voxels(raw_image, channel_windows(plans), names, spacing, decisions)
        digest = content_digest(raw_image, spacing)

        image, nonzero, properties = DefaultPreprocessor(verbose=False).run_case_npy(
            raw_image, None, properties, manager, configuration, dataset_json
        )
        if not np.isfinite(image).all():
            raise ValueError("not finite after normalization and resampling")

        inside = inside_body(image, nonzero, configuration.normalization_schemes)
        body = find_body(inside, configuration.spacing)
        if not any(finding.kind == "fragment" for finding in findings):
            findings += body_findings(body, configuration.spacing, names[0], decisions)

        warnings = tuple(finding.text for finding in findings)
        properties["alice"] = {
            "spacing": tuple(configuration.spacing),
            "body": body.to_dict(),
            "plans_sha256": plans_sha256(plans),
            "warnings": warnings,
            "digest": digest,
        }
        save_volume(folder, case, image, properties, configuration.patch_size)

    except MemoryError:
        return CaseResult("not enough memory: use fewer processes (-np), so that each has more")
    except BadImage as error:
        return CaseResult(str(error))
    except ValueError as error:
        return CaseResult(first_line(error))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise  # the case is not at fault
        return CaseResult(f"{type(error).__name__}: {first_line(error)}")
    return CaseResult(None, warnings, digest)


def body_findings(body: Body, spacing: Spacing, name: str, decisions: Decisions) -> list[Finding]:
    """The warnings on the size of the body. Raises BadImage if the volume is a fragment."""
    extent = tuple((stop - start) * s for start, stop, s in zip(*body.box, spacing))
    findings = settled(check_extent(extent[::-1], "the body", name), decisions)
    raise_errors(findings)
    return findings


def inside_body(image: np.ndarray, nonzero: np.ndarray, schemes: list[str]) -> np.ndarray:
    """Voxels above the window's floor in the first CT channel; without CT, nonzero voxels.

    Args:
        image: preprocessed image, (C, Z, Y, X).
        nonzero: nnU-Net's mask, (1, Z, Y, X), negative outside the nonzero region.
        schemes: normalization scheme of each channel.

    Returns:
        bool (Z, Y, X).
    """
    if "CTNormalization" in schemes:
        return image[schemes.index("CTNormalization")] > RINGING
    return nonzero[0] >= 0
