"""What this machine offers: nnU-Net's variables, versions of packages, the device, free disk."""

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from alice_nnunet.environment import external_trainers, own_trainers
from alice_nnunet.settings.options import usable_cores

GB = 1e9  # bytes; memory.py has the same number, and imports torch, which may be broken here
LITTLE_GB = 5.0  # two checkpoints of nnFormer, preset paper, the old one and the new one, are 4
WRITTEN = ("nnUNet_preprocessed", "nnUNet_results")  # nnUNet_raw is only read


@dataclass(frozen=True)
class FolderState:
    """A folder that one of nnU-Net's variables names.

    Attributes:
        variable: its name.
        path: its value, None if it is not set.
        exists: whether the folder does.
        writable: whether this user may write into it, or where it is missing, make it.
        free_gb: on its disk, in GB of 10^9 bytes.
    """

    variable: str
    path: str | None
    exists: bool = False
    writable: bool = False
    free_gb: float | None = None


@dataclass(frozen=True)
class DeviceState:
    """What a training would run on.

    Attributes:
        name: cuda or cpu.
        gpus: model and memory of each GPU.
        cores: of the CPU, that this process may use.
        meaning: what can be trained here.
    """

    name: str
    gpus: list[str]
    cores: int
    meaning: str


def look_at_folder(variable: str) -> FolderState:
    """The folder that a variable names, without writing anything."""
    value = os.environ.get(variable)
    if not value:
        return FolderState(variable, None)

    folder = Path(value)
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    return FolderState(
        variable,
        value,
        exists=folder.is_dir(),
        writable=nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK),
        free_gb=round(shutil.disk_usage(nearest).free / GB, 1),
    )


def problems_of_folder(folder: FolderState) -> list[str]:
    """What is wrong with a folder, and what to do."""
    variable = folder.variable
    named = f"{variable}={folder.path}"

    if folder.path is None:
        return [f"{variable} is not set: export {variable}=FOLDER"]
    if variable not in WRITTEN:
        return [] if folder.exists else [f"{named} is no folder: correct it, or make the folder"]
    if not folder.writable:
        return [f"{named} cannot be written to: correct it, or change the folder's permissions"]
    if folder.free_gb is not None and folder.free_gb < LITTLE_GB:
        return [f"the disk of {named} has {folder.free_gb} GB free: free some space"]
    return []


def notes_on_trainers() -> list[str]:
    """Say so where nnU-Net's commands would not find AliceTrainer."""
    own = os.path.realpath(own_trainers())
    if own in (os.path.realpath(folder) for folder in external_trainers()):
        return []
    return [
        "nnUNet_extTrainer does not name the folder of AliceTrainer, and nnU-Net's commands will "
        'not find it: eval "$(alice-env)"'
    ]


def installed_versions() -> dict[str, str]:
    """Python, this package and what it needs, with their versions; "missing" for absent ones."""
    versions = {"python": platform.python_version()}
    for requirement in needed():
        try:
            versions[requirement.name] = version(requirement.name)
        except PackageNotFoundError:
            versions[requirement.name] = "missing"
    return versions


def problems_of_versions(versions: dict[str, str]) -> list[str]:
    """Packages that are missing, or older than this package needs."""
    return [
        f"{requirement.name} is {versions[requirement.name]}, needed is {requirement.specifier}: "
        f'pip install "{requirement.name}{requirement.specifier}"'
        for requirement in needed()
        if not requirement.specifier.contains(versions[requirement.name], prereleases=True)
    ]


def needed() -> list[Requirement]:
    """This package, and what it requires where it is used and not tested."""
    found = [Requirement(text) for text in requires("alice-nnunet") or []]
    used = [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [Requirement("alice-nnunet"), *used]


def look_at_device() -> DeviceState:
    """The device that trainings would choose, and what that means."""
    import torch  # here, as it may be what is broken

    cores = usable_cores()
    if not torch.cuda.is_available():
        return DeviceState("cpu", [], cores, f"no GPU: {why_no_gpu()}. {WITHOUT_A_GPU}")

    gpus = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    names = [f"{gpu.name}, {gpu.total_memory / GB:.0f} GB" for gpu in gpus]
    precision = "bf16" if all(gpu.major >= 8 for gpu in gpus) else "fp32, as a GPU has no bf16"
    return DeviceState("cuda", names, cores, f"all presets; they train in {precision}")


WITHOUT_A_GPU = (
    "Preset tiny is made for a CPU; small and paper would take weeks to months there, and start "
    "with -device cpu only"
)


def why_no_gpu() -> str:
    """Whether this build of torch could use one."""
    import torch

    if torch.version.cuda is None:
        return "this torch is a build for CPUs"
    return (
        f"this torch is built for CUDA {torch.version.cuda} and finds no device (does nvidia-smi "
        "list one?)"
    )
