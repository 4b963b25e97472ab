"""Check a whole labeled dataset before anything is planned, and remember what was checked."""

import json
from pathlib import Path

from alice_nnunet.checks.channels import channels_text, check_channel_names
from alice_nnunet.checks.findings import Decisions, Finding, settled
from alice_nnunet.checks.labels import check_not_all_empty, label_values
from alice_nnunet.datasets.labeled_case import (
    LabeledCase,
    channel_windows,
    check_case,
    correct_case,
)
from alice_nnunet.datasets.raw_dataset import (
    IMAGE_FOLDERS,
    find_cases,
    find_passed_over,
    find_stray_labels,
    load_dataset_json,
    passed_over_text,
)
from alice_nnunet.errors import UserError
from alice_nnunet.files import write_json_atomically
from alice_nnunet.workers import run_each

FINGERPRINT = "dataset_fingerprint.json"  # nnU-Net's
CHECKED = "alice_plan_checks.json"  # report, in the dataset's folder in nnUNet_preprocessed


def check_dataset(
    raw: Path,
    preprocessed: Path,
    cases: dict[str, LabeledCase],
    processes: int,
    decisions: Decisions,
) -> None:
    """Check every file, print what was found, and write it into a report.

    Cases whose files have not changed since they were found good are not read again.

    Args:
        raw: folder of the dataset in nnUNet_raw.
        preprocessed: its folder in nnUNet_preprocessed.
        cases: the files of each case.
        processes: number of processes.
        decisions: of the user, which are carried out by writing corrected files.

    Raises:
        UserError: files cannot be used as they are. Nothing was changed then.
    """
    dataset_json = load_dataset_json(raw / "dataset.json")
    names = dataset_json["channel_names"]
    print(channels_text(names), flush=True)
    named = settled(check_channel_names(names), decisions)
    refuse(raw.name, named, "dataset.json")
    passed_over = files_passed_over(raw, dataset_json, cases)
    if passed_over:
        print(passed_over_text(passed_over), flush=True)

    report = preprocessed / CHECKED
    known = earlier_results(report)
    values = label_values(dataset_json)
    rules = (channel_windows(dataset_json), values, decisions)
    signatures = {case: signature(files, rules) for case, files in cases.items()}

    jobs = {
        case: (files, *rules)
        for case, files in cases.items()
        if known.get(case, {}).get("signature") != signatures[case]
    }
    found: dict[str, list[Finding]] = {case: [] for case in cases}
    for case in cases.keys() - jobs.keys():
        found[case] = [Finding(**entries) for entries in known[case]["findings"]]
    found.update(run_each(check_case, jobs, processes))

    findings = [finding for case in sorted(found) for finding in found[case]]
    for finding in findings:
        prefix = "" if finding.is_error else f"{finding.severity.upper()}: "
        print(f"{prefix}{finding.text}", flush=True)
    wrong = sum(any(f.is_error for f in of_case) for of_case in found.values())
    refuse(raw.name, findings, f"{wrong} of {len(cases)} cases")
    refuse(raw.name, check_not_all_empty(found), "labels")

    corrected = []
    for case in sorted(jobs):
        corrected += correct_case(cases[case], found[case], decisions)
    if corrected:
        print(
            f"{len(corrected)} files were corrected in {raw}; as they were, they are in "
            f"{', '.join(sorted({f'{path.parent.name}_original' for path in corrected}))}",
            flush=True,
        )
        (preprocessed / FINGERPRINT).unlink(missing_ok=True)  # made of the files as they were

    write_report(report, cases, found, rules, passed_over)


def files_passed_over(
    raw: Path, dataset_json: dict, cases: dict[str, LabeledCase]
) -> dict[str, str]:
    """Files in the dataset's folders that nnU-Net does not use, with reasons."""
    test_images = raw / IMAGE_FOLDERS[1]
    test_cases, rejected = find_cases([test_images], dataset_json)
    used = {path for files in cases.values() for path in files.files}
    used.update(path for files in test_cases.values() for path in files)

    passed_over = {f"{test_images.name}/{name}": reason for name, reason in rejected.items()}
    folders = [raw / name for name in IMAGE_FOLDERS]
    passed_over |= find_passed_over(folders, dataset_json, used, rejected)
    every = [*cases, *test_cases]
    return passed_over | find_stray_labels(raw, dataset_json, every, used)


def refuse(dataset: str, findings: list[Finding], what: str) -> None:
    """Raise UserError with the first error, if there is one."""
    errors = [finding for finding in findings if finding.is_error]
    if not errors:
        return
    others = f" ({len(errors) - 1} more are listed above)" if len(errors) > 1 else ""
    raise UserError(f"{what} of {dataset} cannot be used as given: {errors[0].text}{others}")


def signature(files: LabeledCase, rules: tuple) -> str:
    """A text that changes when one of the files or what is asked of them changes."""
    windows, values, decisions = rules
    stats = [path.stat() if path.exists() else None for path in files.files]
    parts = [(s.st_size, s.st_mtime_ns) if s else None for s in stats]
    return repr((parts, windows, sorted(values), decisions.to_dict()))


def earlier_results(report: Path) -> dict[str, dict]:
    """What an earlier call found, by case; empty if there is no report that can be read."""
    try:
        return json.loads(report.read_text())["cases"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def write_report(
    report: Path,
    cases: dict[str, LabeledCase],
    found: dict[str, list[Finding]],
    rules: tuple,
    passed_over: dict[str, str],
) -> None:
    """Write what was found, what was passed over, and what the user decided."""
    report.parent.mkdir(parents=True, exist_ok=True)
    entries = {
        case: {
            "signature": signature(cases[case], rules),
            "findings": [finding.to_dict() for finding in found[case]],
        }
        for case in sorted(cases)
    }
    content = {"decisions": rules[2].to_dict(), "passed_over": passed_over, "cases": entries}
    write_json_atomically(report, content)


def check_intensities(
    dataset: str, statistics: dict, index: int, window: list[float], decisions: Decisions
) -> None:
    """Compare nnU-Net's percentiles of the labeled voxels of a CT channel with the window.

    Args:
        dataset: its name.
        statistics: of the channel, in nnU-Net's plans.
        index: of the channel.
        window: bottom and top in HU, of the pretraining.
        decisions: of the user.

    Raises:
        UserError: the percentiles lie outside the window.
    """
    low = statistics["percentile_00_5"]
    high = statistics["percentile_99_5"]
    if (low < window[1] and high > window[0]) or "not-hu" in decisions.accept:
        return

    raise UserError(
        f"{dataset}: channel {index} does not look like CT in HU: 99 % of its labeled voxels lie "
        f"from {low:g} to {high:g}, and the pretraining saw {window[0]:g}..{window[1]:g} HU. "
        f"Convert the values to HU (apply the rescale slope and intercept) and remove "
        f"{FINGERPRINT}, or use --accept not-hu"
    )
