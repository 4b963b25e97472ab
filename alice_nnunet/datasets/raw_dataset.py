"""A dataset in nnUNet_raw whose cases need no labels."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from alice_nnunet.environment import nnunet_folder
from alice_nnunet.errors import UserError

IMAGE_FOLDERS = ("imagesTr", "imagesTs")
LABEL_FOLDERS = ("labelsTr", "labelsTs")
NIFTI_ENDINGS = (".nii.gz", ".nii")  # what nnU-Net's reorienting reader reads
DICOM_ENDING = ".dcm"  # each image is a folder, CASE_0000, with the files of one series
UNLABELED_ENDINGS = (*NIFTI_ENDINGS, ".nrrd", ".mha", ".mhd", DICOM_ENDING)
IMAGE_LIKE = (*UNLABELED_ENDINGS, ".gz", ".nhdr", ".img", ".hdr", ".dicom", ".ima", ".npy", ".npz")
LISTED = 10  # names that a message lists at most


@dataclass(frozen=True)
class RawDataset:
    """The images of a dataset.

    Attributes:
        name: DatasetXXX_NAME.
        dataset_json: content of dataset.json.
        cases: files of each case, one per channel.
        rejected: file or case that cannot be used -> reason.
        passed_over: file or folder among the images that is no image of the dataset -> reason.
    """

    name: str
    dataset_json: dict
    cases: dict[str, list[Path]]
    rejected: dict[str, str]
    passed_over: dict[str, str] = field(default_factory=dict)

    @property
    def preprocessed(self) -> Path:
        """The folder of plans, report and preprocessed cases of this dataset."""
        return nnunet_folder("nnUNet_preprocessed") / self.name


def dataset_name(dataset: str | int) -> str:
    """DatasetXXX_NAME for an ID or a name. Raises UserError for an ID that nnU-Net cannot find."""
    try:
        return str(maybe_convert_to_dataset_name(dataset))
    except ValueError:
        raise UserError(
            f"a dataset is an ID such as 22 or a name such as Dataset022_FLARE22, got {dataset!r}"
        ) from None

    except RuntimeError as error:
        nnunet_folder("nnUNet_raw")  # where it is not set, that is the reason
        found = "more than one dataset" if "More than one" in str(error) else "no dataset"
        variables = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        where = ", ".join(f"{variable}={os.environ.get(variable)}" for variable in variables)
        raise UserError(f"{found} with the ID {dataset} in {where}") from None


def open_raw_dataset(dataset: str | int, test_images: bool = False) -> RawDataset:
    """Find the cases of a dataset in imagesTr, without opening images.

    Args:
        dataset: ID or DatasetXXX_NAME.
        test_images: take those of imagesTs, if it exists, too.

    Raises:
        UserError: the whole dataset is unusable: no folder, an incomplete dataset.json.
    """
    raw = nnunet_folder("nnUNet_raw")
    nnunet_folder("nnUNet_preprocessed")  # results go there: complain before any work

    name = dataset_name(dataset)
    folder = raw / name
    if not folder.is_dir():
        raise UserError(f"no dataset {name} in nnUNet_raw={raw}")

    dataset_json = load_dataset_json(folder / "dataset.json", UNLABELED_ENDINGS)
    if "dataset" not in dataset_json and not (folder / "imagesTr").is_dir():
        raise UserError(f"no folder imagesTr in {folder}: put the images there, CASE_0000.nii.gz")

    folders = [folder / images for images in IMAGE_FOLDERS[: 1 + test_images]]
    cases, rejected = find_cases(folders, dataset_json)
    add_listed_cases(folder, dataset_json, cases, rejected)

    used = {path for files in cases.values() for path in files}
    passed_over = find_passed_over(folders, dataset_json, used, rejected)
    if not cases and not rejected:
        others = f"; it has {first_few(list(passed_over))}" if passed_over else ""
        raise UserError(
            f"no file ends in {dataset_json['file_ending']} (dataset.json, file_ending) "
            f"in {folder / 'imagesTr'}{others}"
        )
    return RawDataset(name, dataset_json, cases, rejected, passed_over)


def load_dataset_json(path: Path, endings: tuple[str, ...] = NIFTI_ENDINGS) -> dict:
    """Read dataset.json and check channel_names and file_ending; labels may be missing.

    Args:
        path: of the file.
        endings: that file_ending may be.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing. It must contain at least "
            '{"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}'
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must contain a JSON object")

    if "channel_names" not in content and "modality" in content:
        raise UserError(
            f"{path} is in the format of nnU-Net version 1 or of the Medical Segmentation "
            f"Decathlon: convert the dataset with nnUNetv2_convert_old_nnUNet_dataset or "
            f"nnUNetv2_convert_MSD_dataset"
        )

    channels = content.get("channel_names")
    named = isinstance(channels, dict) and all(isinstance(c, str) for c in channels.values())
    if not named or not channels:
        raise UserError(
            f'{path}: "channel_names" must be like {{"0": "CT"}}, got {json.dumps(channels)}'
        )

    check_labels_entry(path, content.get("labels"))
    ending = content.get("file_ending")
    if ending not in endings:
        raise UserError(
            f'{path}: "file_ending" must be {" or ".join(endings)}, got {json.dumps(ending)}. '
            f"Convert the images to NIfTI"
        )
    return content


def check_labels_entry(path: Path, labels: object) -> None:
    """Raise UserError if the entry "labels" of dataset.json is not as nnU-Net version 2 has it."""
    if not isinstance(labels, dict):
        return

    for name, value in labels.items():
        values = value if isinstance(value, list) else [value]
        if all(isinstance(v, int) and not isinstance(v, bool) for v in values):
            continue
        remedy = ""
        if str(name).isdigit() and isinstance(value, str):
            remedy = ". nnU-Net version 1 had the number first: turn the entries round"
        raise UserError(
            f'{path}: "labels" must be like {{"background": 0, "liver": 1}}, got '
            f"{json.dumps({name: value})}{remedy}"
        )


def find_cases(
    folders: list[Path], dataset_json: dict
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Find complete cases.

    Returns:
        The files of each case, one per channel, and the reasons for names that cannot be used.

    Raises:
        UserError: two folders have a case of the same name.
    """
    ending = dataset_json["file_ending"]
    files_of, rejected = group_files(folders, ending)

    channels = range(len(dataset_json["channel_names"]))
    cases = {}
    for case, files in files_of.items():
        problems = [f"{case}_{c:04d}{ending} is missing" for c in channels if c not in files]
        problems += [
            f"dataset.json names no channel for {path.name}"
            for channel, path in files.items()
            if channel not in channels
        ]
        if problems:
            rejected[case] = " and ".join(problems)
        else:
            cases[case] = [files[channel] for channel in channels]

    return cases, rejected


def group_files(
    folders: list[Path], ending: str
) -> tuple[dict[str, dict[int, Path]], dict[str, str]]:
    """Group image files by case and channel. Returns these, and the reasons for other names."""
    is_dicom = ending == DICOM_ENDING
    suffix = "" if is_dicom else ending
    pattern = re.compile(r"(.+)_(\d{4})" + re.escape(suffix))
    files_of: dict[str, dict[int, Path]] = {}
    rejected = {}

    for path in sorted(path for folder in folders for path in folder.glob(f"*{suffix}")):
        if path.name.startswith(".") or path.is_dir() != is_dicom:
            continue

        parts = pattern.fullmatch(path.name)
        if parts is None:
            rejected[path.name] = f"the name must end in the channel's number: CASE_0000{suffix}"
            continue

        case = parts[1]
        files = files_of.setdefault(case, {})
        if any(file.parent != path.parent for file in files.values()):
            raise UserError(
                f"case {case} is in {files[min(files)].parent} and in {path.parent}: rename one"
            )
        files[int(parts[2])] = path

    return files_of, rejected


def add_listed_cases(
    folder: Path, dataset_json: dict, cases: dict[str, list[Path]], rejected: dict[str, str]
) -> None:
    """Take the training cases that the entry "dataset" of dataset.json lists, as nnU-Net does.

    They replace those of imagesTr. Adds each to cases, or to rejected with the reason.

    Args:
        folder: of the dataset, which relative paths start from.
        dataset_json: content of dataset.json.
        cases: by name.
        rejected: by name.

    Raises:
        UserError: the entry has another form than nnU-Net's.
    """
    if "dataset" not in dataset_json:
        return

    for case in [c for c, files in cases.items() if files[0].parent.name == "imagesTr"]:
        del cases[case]
    for name in [n for n in rejected if not (folder / "imagesTs" / n).exists()]:
        del rejected[name]

    channels = len(dataset_json["channel_names"])
    for case, files in listed_images(folder, dataset_json).items():
        missing = [str(path) for path in files if not path.exists()]
        if case in cases:
            raise UserError(
                f'case {case} is in {cases[case][0].parent} and in "dataset": rename one'
            )
        if len(files) != channels:
            rejected[case] = f"dataset.json lists {len(files)} images and names {channels} channels"
        elif missing:
            rejected[case] = f"{' and '.join(missing)} (in dataset.json) is missing"
        else:
            cases[case] = files


def listed_images(folder: Path, dataset_json: dict) -> dict[str, list[Path]]:
    """The images of each case in the entry "dataset" of dataset.json.

    Raises:
        UserError: the entry has another form than nnU-Net's.
    """
    listed = {}
    entries = dataset_json["dataset"]
    try:
        for case, entry in entries.items():
            images = [os.path.expandvars(image) for image in entry["images"]]
            listed[str(case)] = [folder / image for image in images]
    except (AttributeError, KeyError, TypeError):
        raise UserError(
            f'{folder / "dataset.json"}: "dataset" must be like '
            f'{{"CASE": {{"images": ["imagesTr/CASE_0000.nii.gz"]}}}}'
        ) from None
    return listed


def find_passed_over(
    folders: list[Path], dataset_json: dict, used: set[Path], rejected: dict[str, str]
) -> dict[str, str]:
    """Files and folders among the images that are not used, with reasons.

    Args:
        folders: of the images.
        dataset_json: content of dataset.json.
        used: files of the cases.
        rejected: names and cases that are reported already.
    """
    ending = dataset_json["file_ending"]
    passed_over = {}

    for path in sorted(path for folder in folders for path in folder.glob("*")):
        case = re.sub(r"_\d{4}$", "", path.name.removesuffix(ending))
        of_mhd = ending == ".mhd" and path.suffix in (".raw", ".zraw")
        if path in used or path.name in rejected or case in rejected or of_mhd:
            continue

        passed_over[f"{path.parent.name}/{path.name}"] = reason_to_pass_over(
            path, ending, 'not in the entry "dataset" of dataset.json'
        )

    return passed_over


def find_stray_labels(
    folder: Path, dataset_json: dict, cases: Iterable[str], used: set[Path]
) -> dict[str, str]:
    """Files and folders among the labels that belong to no image, with reasons.

    Args:
        folder: of the dataset.
        dataset_json: its content.
        cases: names of all cases.
        used: labels that dataset.json lists.
    """
    ending = dataset_json["file_ending"]
    labels = {f"{case}{ending}" for case in cases}
    return {
        f"{path.parent.name}/{path.name}": reason_to_pass_over(path, ending, "there is no image")
        for path in sorted(path for name in LABEL_FOLDERS for path in (folder / name).glob("*"))
        if path.name not in labels and path not in used
    }


def reason_to_pass_over(path: Path, ending: str, otherwise: str) -> str:
    """Why a file or folder is no image or label of a dataset.

    Args:
        path: of the file.
        ending: file_ending of dataset.json.
        otherwise: the reason where the name is like that of an image or label.
    """
    if path.name.startswith("."):
        return "a hidden file"
    if path.is_dir():
        inside = sum(file.is_file() for file in path.rglob("*"))
        return f"a folder of {inside} files: images must lie directly in {path.parent.name}"
    if path.name.endswith(ending):
        return otherwise
    if path.name.lower().endswith(ending):
        return f"dataset.json says that images end in {ending}: rename it"
    if path.name.lower().endswith(IMAGE_LIKE):
        return f"dataset.json says that images end in {ending}: convert it"
    return f"does not end in {ending}"


def passed_over_text(passed_over: dict[str, str]) -> str:
    """How many files were passed over, and which, on one line."""
    names = [f"{name} ({reason})" for name, reason in passed_over.items()]
    return f"passed over {len(names)} files or folders: {first_few(names)}"


def first_few(names: list[str]) -> str:
    """The first names as text, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
