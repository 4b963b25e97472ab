"""A labeled dataset in nnUNet_raw, and what nnU-Net knows of it: fingerprint and plans, made where they are missing."""

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
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from alice_nnunet.errors import UserError
from alice_nnunet.planning.plans import CONFIGURATION, configuration_of
from alice_nnunet.datasets.raw_dataset import dataset_name, load_dataset_json, nnunet_folder
from alice_nnunet.datasets.raw_image import check_header, first_line

FINGERPRINT, PLANS = "dataset_fingerprint.json", "nnUNetPlans.json"


@dataclass(frozen=True)
class LabeledDataset:
    """images: the first channel's file of each case. sizes (voxels, after nnU-Net's crop to nonzero) and spacings (mm)
    of the cases in the same order, (z, y, x) in the canonical orientation. target_spacing: of nnU-Net's own plans, so turned,
    None where the cases' axes are in different orders. outputs: channels of a segmentation network. plans: nnU-Net's own,
    nnUNetPlans.json."""

    name: str
    images: dict[str, Path]
    sizes: list[list[int]]
    spacings: list[list[float]]
    target_spacing: list[float] | None
    outputs: int
    plans: dict

    @property
    def preprocessed(self) -> Path:
        """Where the plans of this dataset are."""
        return nnunet_folder("nnUNet_preprocessed") / self.name


def open_labeled_dataset(dataset: str, processes: int) -> LabeledDataset:
    """Find a dataset and run nnU-Net's fingerprint extraction and planning where their files are missing.

    dataset: ID or name. Raises UserError for no such dataset, missing labels, files that are no NIfTI volumes,
    and where nnU-Net cannot work with them.
    """
    raw, preprocessed = nnunet_folder("nnUNet_raw"), nnunet_folder("nnUNet_preprocessed")
    name = dataset_name(dataset)
    images = labeled_images(raw / name)
    headers = {case: canonical_axes(path) for case, path in images.items()}
    run_nnunet(name, preprocessed / name, processes)
    fingerprint = json.loads((preprocessed / name / FINGERPRINT).read_text())
    if len(fingerprint["spacings"]) != len(images):
        raise UserError(
            f"{preprocessed / name / FINGERPRINT} is of {len(fingerprint['spacings'])} cases and imagesTr has "
            f"{len(images)}; bring it up to date with nnUNetv2_extract_fingerprint -d {int(name[7:10])} --clean"
        )
    plans = json.loads((preprocessed / name / PLANS).read_text())
    if "Reorient" in plans["image_reader_writer"]:
        headers = dict.fromkeys(images, [0, 1, 2])
    sizes, spacings = (
        [[row[axis] for axis in order] for row, order in zip(fingerprint[key], headers.values())]
        for key in ("shapes_after_crop", "spacings")
    )
    labels = load_dataset_json(raw / name / "dataset.json")
    outputs = LabelManager(
        labels["labels"], labels.get("regions_class_order")
    ).num_segmentation_heads
    return LabeledDataset(
        name, images, sizes, spacings, target_spacing(plans, list(headers.values())), outputs, plans
    )


def target_spacing(plans: dict, orders: list[list[int]]) -> list[float] | None:
    """The spacing of nnU-Net's plans along z, y, x of the canonical orientation. orders: canonical_axes of each case."""
    if any(order != orders[0] for order in orders):
        return None
    spacing = configuration_of(plans, CONFIGURATION)["spacing"]
    of_the_file = [spacing[axis] for axis in plans["transpose_backward"]]
    return [of_the_file[axis] for axis in orders[0]]


def labeled_images(folder: Path) -> dict[str, Path]:
    """The first image file of each training case. Raises UserError if a case has no label."""
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
    bare = [case for case, files in cases.items() if not Path(files["label"]).is_file()]
    if bare or not isinstance(dataset_json.get("labels"), dict):
        reason = (
            f"{len(bare)} of {len(cases)} cases have none in labelsTr ({', '.join(bare[:3])}...)"
            if bare
            else "dataset.json names no labels"
        )
        raise UserError(f"fine-tuning needs labels and {folder} lacks them: {reason}")
    return {case: Path(files["images"][0]) for case, files in cases.items()}


def canonical_axes(path: Path) -> list[int]:
    """For z, y, x in the canonical orientation, which of z, y, x of the file's array that is.

    Raises UserError with the reason if the file is no NIfTI volume.
    """
    try:
        check_header(path)
    except ValueError as error:
        raise UserError(f"{path} {error}") from None
    along = nibabel.io_orientation(nibabel.load(path).affine)[
        :, 0
    ].tolist()  # file axes x, y, z -> R, A, S
    return [2 - along.index(axis) for axis in (2, 1, 0)]


def run_nnunet(name: str, preprocessed: Path, processes: int) -> None:
    """nnU-Net's own fingerprint and plans where they are missing. Raises UserError if it cannot make them."""
    try:
        if not (preprocessed / FINGERPRINT).is_file():
            print(f"{name} has no fingerprint yet: nnU-Net extracts it", flush=True)
            with contextlib.redirect_stdout(io.StringIO()):
                DatasetFingerprintExtractor(name, processes).run()
        if not (preprocessed / PLANS).is_file():
            print(f"{name} has no {PLANS} yet: nnU-Net plans it", flush=True)
            with contextlib.redirect_stdout(io.StringIO()):
                ExperimentPlanner(name).plan_experiment()
    except Exception as error:
        raise UserError(
            f"nnU-Net cannot plan {name} ({type(error).__name__}: {first_line(error)}); to look closer, run "
            f"nnUNetv2_plan_and_preprocess -d {int(name[7:10])} --verify_dataset_integrity --no_pp"
        ) from error
