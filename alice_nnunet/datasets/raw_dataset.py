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
    """cases: the files of each case, one per channel. rejected: why a file or a case cannot be used."""

    name: str
    dataset_json: dict
    cases: dict[str, list[Path]]
    rejected: dict[str, str]

    @property
    def preprocessed(self) -> Path:
        """Where the plans, the report and the preprocessed cases of this dataset go."""
        return nnunet_folder("nnUNet_preprocessed") / self.name


def dataset_name(dataset: str | int) -> str:
    """DatasetXXX_NAME for an ID or for that name itself. Raises UserError where nnU-Net's folders have no such ID."""
    try:
        return str(maybe_convert_to_dataset_name(dataset))
    except ValueError:
        raise UserError(
            f"a dataset is an ID like 22 or a name like Dataset022_FLARE22, got {dataset!r}"
        ) from None
    except RuntimeError as error:
        problem = "more than one dataset" if "More than one" in str(error) else "no dataset"
        variables = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        where = ", ".join(f"{variable}={os.environ.get(variable)}" for variable in variables)
        raise UserError(f"{problem} with the ID {dataset} in {where}") from None


def open_raw_dataset(dataset: str | int) -> RawDataset:
    """Find a dataset's cases in imagesTr and, where there is one, imagesTs; no image is opened.

    Raises UserError for what concerns the whole dataset: no folder, a dataset.json without what is needed.
    """
    raw = nnunet_folder("nnUNet_raw")
    nnunet_folder("nnUNet_preprocessed")
    name = dataset_name(dataset)
    if not (raw / name).is_dir():
        raise UserError(f"no dataset {name} in nnUNet_raw={raw}")
    dataset_json = load_dataset_json(raw / name / "dataset.json")
    if not (raw / name / "imagesTr").is_dir():
        raise UserError(
            f"no folder imagesTr in {raw / name}: the images belong there, CASE_0000.nii.gz"
        )
    cases, rejected = find_cases([raw / name / folder for folder in IMAGE_FOLDERS], dataset_json)
    if not cases and not rejected:
        raise UserError(
            f"no file ends in {dataset_json['file_ending']} (dataset.json, file_ending) "
            f"in {raw / name / 'imagesTr'}"
        )
    return RawDataset(name, dataset_json, cases, rejected)


def load_dataset_json(path: Path) -> dict:
    """dataset.json with channel_names and file_ending checked; labels and numTraining may be missing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; the least it says is "
            '{"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}'
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object")
    channels, ending = content.get("channel_names"), content.get("file_ending")
    if (
        not isinstance(channels, dict)
        or not channels
        or not all(isinstance(c, str) for c in channels.values())
    ):
        raise UserError(
            f'{path}: "channel_names" must be like {{"0": "CT"}}, got {json.dumps(channels)}'
        )
    if ending not in FILE_ENDINGS:
        raise UserError(
            f'{path}: "file_ending" must be .nii.gz or .nii, got {json.dumps(ending)}; nnU-Net turns only '
            f"NIfTI files to one orientation: convert the images to NIfTI"
        )
    return content


def find_cases(
    folders: list[Path], dataset_json: dict
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Files by case, sorted, and the names that cannot be used with their reasons.

    Raises UserError where two folders hold a case of the same name.
    """
    ending, channels = dataset_json["file_ending"], range(len(dataset_json["channel_names"]))
    pattern = re.compile(r"(.+)_(\d{4})" + re.escape(ending))
    found, rejected = {}, {}
    for path in sorted(path for folder in folders for path in folder.glob(f"*{ending}")):
        parts = pattern.fullmatch(path.name)
        if path.name.startswith("."):
            continue
        if parts is None:
            rejected[path.name] = f"the name must end in the channel's number: CASE_0000{ending}"
            continue
        files = found.setdefault(parts[1], {})
        if any(file.parent != path.parent for file in files.values()):
            raise UserError(
                f"case {parts[1]} is in {files[min(files)].parent} and in {path.parent}: rename one"
            )
        files[int(parts[2])] = path
    cases = {}
    for case, files in found.items():
        missing = [f"{case}_{c:04d}{ending}" for c in channels if c not in files]
        unknown = [path.name for c, path in files.items() if c not in channels]
        if missing or unknown:
            rejected[case] = " and ".join(
                [f"{name} is missing" for name in missing]
                + [f"dataset.json names no channel for {name}" for name in unknown]
            )
        else:
            cases[case] = [files[c] for c in channels]
    return cases, rejected
