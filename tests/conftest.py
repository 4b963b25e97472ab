"""nnU-Net's three folders, a small real CT, and raw datasets for tests."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

import alice_nnunet
from tests.helpers.warm_commands import warm_commands
from tests.helpers.warm_processes import warm_processes

for variable, value in {
    "OMP_NUM_THREADS": "1",  # pytest runs a process on each core,
    "OMP_WAIT_POLICY": "PASSIVE",  # idle threads must not spin,
    "nnUNet_def_n_proc": "1",  # and nnU-Net must not start eight processes to export one case
}.items():
    os.environ.setdefault(variable, value)

LARGEST_AXIS = 48  # voxels of real_ct

# Files that take longest, the longest first.
LONGEST = (
    "test_docs.py",
    "trainers/test_alice_trainer.py",
    "pretrain/commands/test_pretrain.py",
    "demo/test_pipeline.py",
    "pretrain/commands/test_embed.py",
    "submission/test_folder.py",
    "commands/test_plan.py",
    "test_package.py",
    "pretrain/test_data_faults.py",
    "trainers/test_regions.py",
    "pretrain/test_killed.py",
    "planning/test_step_memory.py",
    "pretrain/runtime/test_distributed.py",
    "networks/test_compiled.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, so that pytest's processes end at about the same time."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture
def nnunet_folders(tmp_path, monkeypatch) -> Path:
    """A folder with raw/, preprocessed/ and results/ that nnU-Net's variables point to."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> Iterator[Path]:
    """A folder of the installed commands that start quickly, see warm_commands."""
    with warm_commands(tmp_path_factory.mktemp("programs")) as folder:
        yield folder


@pytest.fixture(scope="session", autouse=True)
def quick_spawning() -> Iterator[None]:
    """Processes that the tests' own process spawns start quickly, see warm_processes."""
    with warm_processes():
        yield


@pytest.fixture(scope="session")
def real_ct() -> nibabel.Nifti1Image:
    """One of the demo's CT volumes, every n-th voxel of it; HU, with air around the body."""
    for path in sorted((Path(alice_nnunet.__file__).parent / "demo" / "volumes").glob("*.nii.gz")):
        image = nibabel.load(path)
        step = -(-max(image.shape) // LARGEST_AXIS)
        small = image.slicer[::step, ::step, ::step]
        voxels = np.asarray(small.dataobj).astype(np.int16)
        if voxels.min() < -900:  # the labels that ship beside it are no CT
            return nibabel.Nifti1Image(voxels, small.affine)
    pytest.skip("no CT in alice_nnunet/demo/volumes")


@pytest.fixture
def raw_dataset(nnunet_folders):
    """A function that writes Dataset022_Test and returns its raw folder.

    Cases are {name: image, or a list of one image per channel}. An image is a nibabel image, or
    bytes for a file that is none.
    """

    def write(cases: dict, channels: tuple[str, ...] = ("CT",)) -> Path:
        folder = nnunet_folders / "raw" / "Dataset022_Test"
        (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
        names = {str(i): name for i, name in enumerate(channels)}
        (folder / "dataset.json").write_text(
            json.dumps({"channel_names": names, "file_ending": ".nii.gz"})
        )
        for case, images in cases.items():
            for channel, image in enumerate(images if isinstance(images, list) else [images]):
                path = folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz"
                path.write_bytes(image) if isinstance(image, bytes) else nibabel.save(image, path)
        return folder

    return write


@pytest.fixture(scope="session")
def shipped_ct() -> dict[str, Path]:
    """Case name -> file of the CT volumes that ship with the package."""
    folder = Path(alice_nnunet.__file__).parent / "demo" / "volumes"
    return {
        p.name.removesuffix(".nii.gz"): p
        for p in folder.glob("*.nii.gz")
        if not p.name.endswith("_labels.nii.gz")
    }
