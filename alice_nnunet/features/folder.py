"""The scans in a folder, by name."""

import re
from pathlib import Path

from alice_nnunet.datasets.raw_dataset import DICOM_ENDING, UNLABELED_ENDINGS
from alice_nnunet.errors import UserError

CHANNEL = re.compile(r"(.+)_(\d{4})")


def find_scans(given: Path, channels: int) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """The scans in a folder, or the one in a file.

    Files of several channels are called CASE_0000, CASE_0001 and so on. A scan of one channel may
    have any name; _0000 at its end does not belong to it. A folder inside is one DICOM series.

    Args:
        given: folder, or file.
        channels: of each scan.

    Returns:
        The files of each scan, one for each channel, and the reasons for what cannot be used.

    Raises:
        UserError: there is nothing of this name, or no scan in it.
    """
    if not given.exists():
        raise UserError(f"there is no file or folder {given}")
    paths = sorted(given.iterdir()) if given.is_dir() else [given]
    paths = [path for path in paths if is_scan(path)]
    if not paths:
        raise UserError(f"no scan in {given}: scans end in {', '.join(UNLABELED_ENDINGS)}")

    scans: dict[str, dict[int, Path]] = {}
    failed = {}
    for path in paths:
        name, channel = name_and_channel(path, channels)
        files = scans.setdefault(name, {})
        if channel in files:
            failed[path.name] = f"has the name of another scan, {files[channel].name}: rename one"
        else:
            files[channel] = path

    complete = {}
    for name, files in scans.items():
        if sorted(files) == list(range(channels)):
            complete[name] = [files[channel] for channel in range(channels)]
        else:
            found = ", ".join(path.name for path in files.values())
            failed[name] = (
                f"{channels} files are needed, {name}_0000 to {name}_{channels - 1:04d}; "
                f"found {found}"
            )
    return complete, failed


def is_scan(path: Path) -> bool:
    """Whether the name is one of a scan. A folder may hold the files of a DICOM series."""
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return any(file.is_file() for file in path.iterdir())
    return path.name.lower().endswith(UNLABELED_ENDINGS) and path.suffix != DICOM_ENDING


def stem_of(path: Path) -> str:
    """The name of a file without the ending of its format."""
    if path.is_dir():
        return path.name
    ending = next((e for e in UNLABELED_ENDINGS if path.name.lower().endswith(e)), "")
    return path.name[: len(path.name) - len(ending)]


def name_and_channel(path: Path, channels: int) -> tuple[str, int]:
    """The name of a scan and the channel, from the name of a file."""
    stem = stem_of(path)
    parts = CHANNEL.fullmatch(stem)
    if parts is None or (channels == 1 and parts[2] != "0000"):
        return stem, 0
    return parts[1], int(parts[2])
