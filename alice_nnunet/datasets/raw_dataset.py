"""A dataset in nnUNet_raw whose cases need no labels."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from alice_nnunet.environment import nnunet_folder
from alice_nnunet.errors import UserError

IMAGE_FOLDERS = ("imagesTr", "imagesTs")
FILE_ENDINGS = (".nii.gz", ".nii")  # what nnU-Net's reorienting reader reads


@dataclass(frozen=True)
class RawDataset:
    """The images of a dataset.

    Attributes:
        name: DatasetXXX_NAME.
        dataset_json: content of dataset.json.
        cases: files of each case, one per channel.
        rejected: file or case that cannot be used -> reason.
    """

    name: str
    dataset_json: dict
    cases: dict[str, list[Path]]
    rejected: dict[str, str]

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

    dataset_json = load_dataset_json(folder / "dataset.json")
    if not (folder / "imagesTr").is_dir():
        raise UserError(f"no folder imagesTr in {folder}: put the images there, CASE_0000.nii.gz")

    folders = [folder / images for images in IMAGE_FOLDERS[: 1 + test_images]]
    cases, rejected = find_cases(folders, dataset_json)
    if not cases and not rejected:
        raise UserError(
            f"no file ends in {dataset_json['file_ending']} (dataset.json, file_ending) "
            f"in {folder / 'imagesTr'}"
        )
    return RawDataset(name, dataset_json, cases, rejected)


def load_dataset_json(path: Path) -> dict:
    """Read dataset.json and check channel_names and file_ending; labels may be missing."""
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

    channels = content.get("channel_names")
    named = isinstance(channels, dict) and all(isinstance(c, str) for c in channels.values())
    if not named or not channels:
        raise UserError(
            f'{path}: "channel_names" must be like {{"0": "CT"}}, got {json.dumps(channels)}'
        )

    ending = content.get("file_ending")
    if ending not in FILE_ENDINGS:
        raise UserError(
            f'{path}: "file_ending" must be .nii.gz or .nii, got {json.dumps(ending)}. nnU-Net '
            f"reorients only NIfTI files: convert the images to NIfTI"
        )
    return content


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
    pattern = re.compile(r"(.+)_(\d{4})" + re.escape(ending))
    files_of: dict[str, dict[int, Path]] = {}
    rejected = {}

    for path in sorted(path for folder in folders for path in folder.glob(f"*{ending}")):
        if path.name.startswith("."):
            continue

        parts = pattern.fullmatch(path.name)
        if parts is None:
            rejected[path.name] = f"the name must end in the channel's number: CASE_0000{ending}"
            continue

        case = parts[1]
        files = files_of.setdefault(case, {})
        if any(file.parent != path.parent for file in files.values()):
            raise UserError(
                f"case {case} is in {files[min(files)].parent} and in {path.parent}: rename one"
            )
        files[int(parts[2])] = path

    return files_of, rejected
