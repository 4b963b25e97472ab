"""A labeled dataset in nnUNet_raw, with nnU-Net's fingerprint and plans, made if missing."""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import nibabel
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
    DatasetFingerprintExtractor,
)
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from alice_nnunet.checks.findings import NO_DECISIONS, Decisions
from alice_nnunet.checks.formats import first_line
from alice_nnunet.datasets.labeled_case import LabeledCase
from alice_nnunet.datasets.raw_dataset import dataset_name, load_dataset_json
from alice_nnunet.datasets.raw_image import read_geometry
from alice_nnunet.environment import nnunet_folder
from alice_nnunet.errors import UserError
from alice_nnunet.finetuning.nnunet_plans import configuration_of, dataset_number
from alice_nnunet.finetuning.seeded_loading import batch_processes
from alice_nnunet.names import CONFIGURATION
from alice_nnunet.planning.checked_dataset import FINGERPRINT, check_dataset

PLANS = "nnUNetPlans.json"


@dataclass(frozen=True)
class LabeledDataset:
    """A dataset to fine-tune on.

    Attributes:
        name: DatasetXXX_NAME.
        images: file of the first channel of each case.
        sizes: of the cases in the same order, voxels after nnU-Net's crop to nonzero, (z, y, x) in
            the canonical orientation.
        spacings: of the cases in the same order, mm, along the same axes.
        target_spacing: of nnU-Net's own plans, along the same axes; None if the cases' axes are in
            different orders.
        outputs: channels of a segmentation network.
        plans: nnU-Net's own, nnUNetPlans.json.
    """

    name: str
    images: dict[str, Path]
    sizes: list[list[int]]
    spacings: list[list[float]]
    target_spacing: list[float] | None
    outputs: int
    plans: dict

    @property
    def number(self) -> int:
        """The ID in the name."""
        return dataset_number(self.name)

    @property
    def preprocessed(self) -> Path:
        """Folder of the plans of this dataset."""
        return nnunet_folder("nnUNet_preprocessed") / self.name


def open_labeled_dataset(
    dataset: str, processes: int, decisions: Decisions = NO_DECISIONS
) -> LabeledDataset:
    """Check a dataset, and run nnU-Net's fingerprint extraction and planning if it lacks them.

    Args:
        dataset: ID or name.
        processes: for the checks and the fingerprint.
        decisions: what to do with files that leave a choice.

    Raises:
        UserError: there is no such dataset, labels are missing, files cannot be used as they are,
            or nnU-Net cannot plan it.
    """
    raw = nnunet_folder("nnUNet_raw")
    preprocessed = nnunet_folder("nnUNet_preprocessed")
    name = dataset_name(dataset)
    cases = labeled_cases(raw / name)
    check_dataset(raw / name, preprocessed / name, cases, processes, decisions)
    images = {case: files.images[0] for case, files in cases.items()}
    orders = [canonical_axes(path) for path in images.values()]

    run_nnunet(name, preprocessed / name, processes)
    fingerprint = json.loads((preprocessed / name / FINGERPRINT).read_text())
    plans = json.loads((preprocessed / name / PLANS).read_text())

    if len(fingerprint["spacings"]) != len(images):
        raise UserError(
            f"{preprocessed / name / FINGERPRINT} is of {len(fingerprint['spacings'])} cases and "
            f"imagesTr has {len(images)}; update it with nnUNetv2_extract_fingerprint "
            f"-d {dataset_number(name)} --clean"
        )

    # nnU-Net's reorienting reader has turned the cases already
    if "Reorient" in plans["image_reader_writer"]:
        orders = [[0, 1, 2]] * len(images)

    labels = load_dataset_json(raw / name / "dataset.json")
    manager = LabelManager(labels["labels"], labels.get("regions_class_order"))
    return LabeledDataset(
        name=name,
        images=images,
        sizes=reordered(fingerprint["shapes_after_crop"], orders),
        spacings=reordered(fingerprint["spacings"], orders),
        target_spacing=target_spacing(plans, orders),
        outputs=manager.num_segmentation_heads,
        plans=plans,
    )


def reordered(rows: list[list], orders: list[list[int]]) -> list[list]:
    """The values of each case in another order of axes."""
    return [[row[axis] for axis in order] for row, order in zip(rows, orders)]


def target_spacing(plans: dict, orders: list[list[int]]) -> list[float] | None:
    """The spacing of nnU-Net's plans along z, y, x of the canonical orientation.

    Args:
        plans: nnU-Net's own.
        orders: canonical_axes of each case.

    Returns:
        mm, or None if the orders differ.
    """
    if any(order != orders[0] for order in orders):
        return None

    spacing = configuration_of(plans, CONFIGURATION)["spacing"]
    of_the_file = [spacing[axis] for axis in plans["transpose_backward"]]
    return [of_the_file[axis] for axis in orders[0]]


def labeled_cases(folder: Path) -> dict[str, LabeledCase]:
    """The files of each training case. Raises UserError if a case has no label."""
    if not folder.is_dir():
        raise UserError(f"no dataset {folder.name} in nnUNet_raw={folder.parent}")

    dataset_json = load_dataset_json(folder / "dataset.json")
    if "dataset" not in dataset_json and not (folder / "imagesTr").is_dir():
        raise UserError(f"no folder imagesTr in {folder}")

    cases = get_filenames_of_train_images_and_targets(str(folder), dataset_json)
    if not cases:
        raise UserError(
            f"no file ends in {dataset_json['file_ending']} (dataset.json, file_ending) "
            f"in {folder / 'imagesTr'}"
        )

    if not isinstance(dataset_json.get("labels"), dict):
        raise UserError(f"fine-tuning needs labels and {folder / 'dataset.json'} names none")

    unlabeled = [case for case, files in cases.items() if not Path(files["label"]).is_file()]
    if unlabeled:
        raise UserError(
            f"fine-tuning needs labels and {folder} lacks them: {len(unlabeled)} of {len(cases)} "
            f"cases have none in labelsTr ({', '.join(unlabeled[:3])}...)"
        )
    return {
        case: LabeledCase(tuple(map(Path, files["images"])), Path(files["label"]))
        for case, files in cases.items()
    }


def canonical_axes(path: Path) -> list[int]:
    """For z, y, x in the canonical orientation, the axis (z, y, x) of the file's array.

    Raises:
        UserError: the file is not a NIfTI volume.
    """
    try:
        geometry = read_geometry(path)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None

    # for the file's axes x, y, z the axis of R, A, S
    orientation = nibabel.io_orientation(geometry.affine)
    along = orientation[:, 0].tolist()
    return [2 - along.index(axis) for axis in (2, 1, 0)]


def run_nnunet(name: str, preprocessed: Path, processes: int) -> None:
    """Make nnU-Net's own fingerprint and plans if they are missing.

    Args:
        name: of the dataset.
        preprocessed: its folder in nnUNet_preprocessed.
        processes: for the fingerprint.

    Raises:
        UserError: nnU-Net cannot make them.
    """
    try:
        if not (preprocessed / FINGERPRINT).is_file():
            print(f"{name} has no fingerprint yet: nnU-Net extracts it", flush=True)
            with contextlib.redirect_stdout(io.StringIO()):
                DatasetFingerprintExtractor(name, processes).run()

        if not (preprocessed / PLANS).is_file():
            print(f"{name} has no {PLANS} yet: nnU-Net plans it", flush=True)
            # the planner takes as many threads as there are processes for batches, and fails at 0
            threads = max(1, get_allowed_n_proc_DA())
            with contextlib.redirect_stdout(io.StringIO()), batch_processes(str(threads)):
                ExperimentPlanner(name).plan_experiment()

    except Exception as error:
        raise UserError(
            f"nnU-Net cannot plan {name} ({type(error).__name__}: {first_line(error)}); for "
            f"details run nnUNetv2_plan_and_preprocess -d {dataset_number(name)} "
            f"--verify_dataset_integrity --no_pp"
        ) from error
