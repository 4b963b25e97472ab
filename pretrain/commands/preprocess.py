"""alice-preprocess: an unlabeled dataset in nnUNet_raw becomes volumes that crops can be read from."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from alice_nnunet.data.body import find_body
from alice_nnunet.data.volumes import (
    case_names,
    case_properties,
    check_volume,
    remove_partial,
    save_volume,
)
from alice_nnunet.errors import CommandParser, UserError, command
from alice_nnunet.files import locked, write_json_atomically
from alice_nnunet.geometry import Triple
from alice_nnunet.pretrain.datasets.plans import (
    CONFIGURATION,
    PATCH_SIZE,
    PLANS,
    SPACING,
    channel_windows,
    load_plans,
    make_plans,
    plans_sha256,
)
from alice_nnunet.datasets.raw_dataset import RawDataset, open_raw_dataset
from alice_nnunet.datasets.raw_image import check_voxels, first_line, read_case
from alice_nnunet.workers import default_processes, run_each

REPORT = f"{PLANS}_report.json"
RINGING = 0.01  # cubic resampling leaves ripples of this size in the air beside the skin, in units of the window

Spacing = tuple[float, float, float]  # mm, (z, y, x)


@command("alice-preprocess")
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(
        "alice-preprocess",
        description="Preprocess a dataset that needs no labels: imagesTr, "
        "imagesTs and a dataset.json with channel_names and file_ending.",
    )
    parser.add_argument(
        "-d", metavar="DATASET", required=True, help="ID or DatasetXXX_NAME in nnUNet_raw"
    )
    parser.add_argument(
        "-np", type=int, default=default_processes(), help="processes (default: %(default)s)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="throw away what is there and do every case again"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read all finished cases and do the damaged ones again",
    )
    parser.add_argument(
        "-spacing", type=float, nargs=3, metavar=("Z", "Y", "X"), help=f"mm (default: {SPACING})"
    )
    parser.add_argument(
        "-patch", type=int, nargs=3, metavar=("Z", "Y", "X"), help=f"voxels (default: {PATCH_SIZE})"
    )
    args = parser.parse_args(argv)
    preprocess_dataset(
        args.d,
        args.np,
        args.overwrite,
        args.verify,
        tuple(args.spacing) if args.spacing else None,
        tuple(args.patch) if args.patch else None,
    )


def preprocess_dataset(
    dataset: str | int,
    processes: int,
    overwrite: bool = False,
    verify: bool = False,
    spacing: Spacing | None = None,
    patch_size: Triple | None = None,
) -> dict:
    """Preprocess the cases of a raw dataset that are not done yet.

    dataset: ID or name. processes: how many; 1 works in this one. overwrite: do all again. verify: read what is done
    and do again what is damaged. spacing (mm), patch_size (voxels): (z, y, x), None for what the plans say.
    Returns the report {"ok": [case, ...], "failed": {case: reason}}, which is also written beside the plans. Raises
    UserError for what the user can mend, and when no case is good.
    """
    check_numbers(processes, spacing, patch_size)
    raw = open_raw_dataset(dataset)
    report_path = raw.preprocessed / REPORT
    with working_in(raw.preprocessed):
        plans = settle_plans(raw, overwrite, spacing, patch_size)
        folder = prepare_folder(raw, plans, overwrite)
        damaged = remove_damaged(folder, processes) if verify else {}
        good, failed = finished_cases(folder, plans), dict(raw.rejected)
        failed |= {
            case: f"damaged, and nnUNet_raw has no images of it any more ({reason})"
            for case, reason in damaged.items()
            if case not in raw.cases
        }
        report_path.unlink(missing_ok=True)  # while there is a report, the work is done
        say_what_is_kept(good, raw)
        preprocess_cases(raw, plans, folder, processes, good, failed)
        report = {"ok": sorted(good & raw.cases.keys()), "failed": dict(sorted(failed.items()))}
        write_json_atomically(report_path, report)
    if not report["ok"]:
        raise UserError(
            f"none of {len(failed)} cases of {raw.name} could be used; {report_path} says why"
        )
    print(
        f"{raw.name}: {len(report['ok'])} cases good, {len(failed)} failed; report: {report_path}"
    )
    return report


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """A folder of preprocessed data that is made if need be and that no other process preprocesses into meanwhile."""
    lock = folder / f"{PLANS}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}): see to nnUNet_preprocessed"
        ) from None
    with locked(lock):
        yield


def check_numbers(processes: int, spacing: Spacing | None, patch_size: Triple | None) -> None:
    """Raises UserError for numbers that make no sense."""
    if processes < 1:
        raise UserError(f"-np must be at least 1, got {processes}")
    if spacing and not all(np.isfinite(s) and s > 0 for s in spacing):
        raise UserError(f"-spacing must be three positive numbers in mm, got {spacing}")
    if patch_size and min(patch_size) < 1:
        raise UserError(f"-patch must be three positive numbers of voxels, got {patch_size}")


def settle_plans(
    raw: RawDataset, overwrite: bool, spacing: Spacing | None, patch_size: Triple | None
) -> dict:
    """The plans on the disk, perhaps edited by hand; new ones where there are none.

    Raises UserError where other numbers than theirs are asked for without overwrite.
    """
    path = raw.preprocessed / f"{PLANS}.json"
    if path.exists():
        plans = load_plans(path, raw.dataset_json)
        configuration = plans["configurations"][CONFIGURATION]
        asked = {"spacing": spacing, "patch_size": patch_size}
        other = [
            key for key, value in asked.items() if value and list(value) != list(configuration[key])
        ]
        if not other:
            return plans
        if not overwrite:
            raise UserError(
                " and ".join(
                    f"{path} says {key} {configuration[key]}, asked for {list(asked[key])}"
                    for key in other
                )
                + ": --overwrite changes it and does every case again"
            )
        spacing, patch_size = (value or tuple(configuration[key]) for key, value in asked.items())
    plans = make_plans(raw, spacing or SPACING, patch_size or PATCH_SIZE)
    write_json_atomically(path, plans)
    return plans


def prepare_folder(raw: RawDataset, plans: dict, overwrite: bool) -> Path:
    """The folder of the preprocessed cases, free of what a killed run left; empty with overwrite."""
    folder = raw.preprocessed / plans["configurations"][CONFIGURATION]["data_identifier"]
    if overwrite:
        (raw.preprocessed / REPORT).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    remove_partial(folder)
    if not (raw.preprocessed / "dataset.json").exists():
        write_json_atomically(raw.preprocessed / "dataset.json", raw.dataset_json)
    return folder


def finished_cases(folder: Path, plans: dict) -> set[str]:
    """Cases that these plans have already made. Raises UserError where other plans made one."""
    finished = set()
    for case in case_names(folder):
        try:
            made_by = case_properties(folder, case)["alice"]["plans_sha256"]
        except UserError:
            continue  # damaged: it is made again
        if made_by != plans_sha256(plans):
            raise UserError(
                f"{PLANS}.json has changed since {case} was preprocessed in {folder}: "
                f"undo the change, or do every case again with --overwrite"
            )
        finished.add(case)
    return finished


def remove_damaged(folder: Path, processes: int) -> dict[str, str]:
    """Read all finished cases; remove those that are damaged. Returns what is wrong with each of them."""
    damaged = {}
    jobs = {case: (folder, case) for case in case_names(folder)}
    for case, reason in progress(run_each(check_volume, jobs, processes), "verifying", len(jobs)):
        if reason:
            tqdm.write(f"{case}: {reason}")
            (folder / f"{case}.pkl").unlink(missing_ok=True)
            damaged[case] = reason
    return damaged


def progress(results: Iterator, verb: str, total: int) -> tqdm:
    """The results behind a progress bar, where there is a terminal to show it."""
    return tqdm(results, verb, total, unit="case", disable=None)


def say_what_is_kept(good: set[str], raw: RawDataset) -> None:
    """Say what is not done again."""
    if good & raw.cases.keys():
        print(
            f"{len(good & raw.cases.keys())} of {len(raw.cases)} cases are already preprocessed by these plans"
        )
    if good - raw.cases.keys():
        print(
            f"{len(good - raw.cases.keys())} preprocessed cases have no images in nnUNet_raw any more; they are kept"
        )


def preprocess_cases(
    raw: RawDataset,
    plans: dict,
    folder: Path,
    processes: int,
    good: set[str],
    failed: dict[str, str],
) -> None:
    """Do the cases that are not good yet; adds to good, or to failed with the reason."""
    for name, reason in failed.items():
        tqdm.write(f"{name}: {reason}")
    jobs = {
        case: (folder, case, files, plans, raw.dataset_json)
        for case, files in raw.cases.items()
        if case not in good
    }
    for case, reason in progress(
        run_each(preprocess_case, jobs, processes), "preprocessing", len(jobs)
    ):
        if reason:
            tqdm.write(f"{case}: {reason}")
            failed[case] = reason
        else:
            good.add(case)


def preprocess_case(
    folder: Path, case: str, files: list[Path], plans: dict, dataset_json: dict
) -> str | None:
    """One case from its files into folder. Returns why that cannot be done, None where it was done."""
    try:
        manager = PlansManager(plans)
        configuration = manager.get_configuration(CONFIGURATION)
        raw_image, properties = read_case(files, manager.image_reader_writer_class())
        check_voxels(raw_image, channel_windows(plans))
        image, nonzero, properties = DefaultPreprocessor(verbose=False).run_case_npy(
            raw_image, None, properties, manager, configuration, dataset_json
        )
        if not np.isfinite(image).all():
            raise ValueError("not finite after normalization and resampling")
        body = find_body(
            inside_body(image, nonzero, configuration.normalization_schemes), configuration.spacing
        )
        properties["alice"] = {
            "spacing": tuple(configuration.spacing),
            "body": body.to_dict(),
            "plans_sha256": plans_sha256(plans),
        }
        save_volume(folder, case, image, properties, configuration.patch_size)
    except MemoryError:
        return "not enough memory: fewer processes (-np) leave more for each"
    except ValueError as error:
        return first_line(error)
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def inside_body(image: np.ndarray, nonzero: np.ndarray, schemes: list[str]) -> np.ndarray:
    """Voxels that are no air, bool (Z, Y, X): above the window's floor in the first CT channel; without CT, nonzero.

    image: preprocessed, (C, Z, Y, X). nonzero: nnU-Net's, (1, Z, Y, X), under 0 outside the nonzero region.
    """
    if "CTNormalization" in schemes:
        return image[schemes.index("CTNormalization")] > RINGING
    return nonzero[0] >= 0
