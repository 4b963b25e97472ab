"""Say which scans of a raw dataset are used: a test set or labels may be among them."""

from pathlib import Path

from alice_nnunet.data.volumes import case_names
from alice_nnunet.datasets.raw_dataset import open_raw_dataset
from alice_nnunet.environment import nnunet_folder
from alice_nnunet.errors import UserError

TRAINING = "imagesTr"
TEST = "imagesTs"


def cases_of(name: str, images: str) -> set[str]:
    """The complete cases of one folder of a raw dataset; none where the dataset is missing.

    Args:
        name: DatasetXXX_NAME.
        images: imagesTr, also for images elsewhere that dataset.json lists, or imagesTs.
    """
    try:
        cases = open_raw_dataset(name, test_images=True).cases
    except UserError:
        return set()
    in_test = {case for case, files in cases.items() if files[0].parent.name == TEST}
    return in_test if images == TEST else cases.keys() - in_test


def has_test_cases(name: str, volumes: Path) -> bool:
    """Whether scans of imagesTs are among the preprocessed volumes in a folder."""
    return volumes.is_dir() and bool(cases_of(name, TEST) & set(case_names(volumes)))


def is_labeled(name: str) -> bool:
    """Whether a raw dataset has labels."""
    try:
        return (nnunet_folder("nnUNet_raw") / name / "labelsTr").is_dir()
    except UserError:
        return False


def print_shares(name: str, used: set[str], failed: set[str]) -> None:
    """Print how many of the volumes that are used come from which folder, and what follows.

    Args:
        name: DatasetXXX_NAME.
        used: names of the cases.
        failed: names of those that could not be used, which is said elsewhere.
    """
    test = cases_of(name, TEST)
    shares = f"{name}: {len(used)} volumes, {len(used & test)} of them of {TEST}"

    if used & test:
        shares += (
            f". Do not report results on {TEST} of an encoder that has seen it; alice-preprocess "
            f"-d {name} --overwrite leaves it out"
        )
    elif test:
        shares += f", where {len(test)} are left out (alice-preprocess --with-test-images)"
    print(shares, flush=True)

    if is_labeled(name):
        print(
            f"{name} has labels (labelsTr), which are not used. Its {TRAINING} is: for a fair "
            "cross-validation on this dataset, pretrain on other scans",
            flush=True,
        )

    later = sorted(cases_of(name, TRAINING) - used - failed)
    if later:
        some = ", ".join(later[:5]) + (" ..." if len(later) > 5 else "")
        print(
            f"{len(later)} scans in {TRAINING} were added after preprocessing and are not used "
            f"({some}): alice-preprocess -d {name} adds them",
            flush=True,
        )
