"""alice-check without a dataset: the machine and all datasets in one look, as text or JSON."""

import json
from dataclasses import asdict, dataclass, field

from alice_nnunet.doctor.datasets import DatasetState, dataset_names, look_at_dataset
from alice_nnunet.doctor.findings import Findings
from alice_nnunet.doctor.fits import compare_parts
from alice_nnunet.doctor.machine import (
    DeviceState,
    FolderState,
    installed_versions,
    look_at_device,
    look_at_folder,
    notes_on_trainers,
    problems_of_folder,
    problems_of_versions,
)
from alice_nnunet.doctor.page import page


@dataclass
class Examination:
    """Everything that was found. None or empty: not there, or not readable."""

    versions: dict[str, str] = field(default_factory=dict)
    folders: list[FolderState] = field(default_factory=list)
    device: DeviceState | None = None
    datasets: list[DatasetState] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)


def show_examination(as_json: bool) -> None:
    """Look at everything and print it."""
    found = examine()
    if not as_json:
        print(page(found.versions, found.folders, found.device, found.datasets, found.findings))
        return

    content = asdict(found)
    content |= content.pop("findings")
    for dataset in content["datasets"]:
        if dataset["volumes"]:
            del dataset["volumes"]["names"]
    print(json.dumps(content, indent=4, ensure_ascii=False))


def examine() -> Examination:
    """Look at variables, versions, device and datasets. Nothing is written.

    Whatever cannot be read is a problem of its own and costs nothing else.
    """
    found = Examination()
    findings = found.findings

    with findings.reading("the installed versions"):
        found.versions = installed_versions()
        findings.problems += problems_of_versions(found.versions)

    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        with findings.reading(variable):
            folder = look_at_folder(variable)
            found.folders.append(folder)
            findings.problems += problems_of_folder(folder)
    with findings.reading("nnUNet_extTrainer"):
        findings.notes += notes_on_trainers()

    with findings.reading("the device (torch)"):
        found.device = look_at_device()

    names: list[str] = []
    with findings.reading("the list of datasets"):
        names = dataset_names()
    for name in names:
        with findings.reading(name):
            state = look_at_dataset(name, findings)
            found.datasets.append(state)
            compare_parts(state, findings)
    return found
