"""What the doctor found, as text for a terminal."""

from alice_nnunet.doctor.datasets import DatasetState, IndexState, RawState, VolumesState
from alice_nnunet.doctor.findings import Findings
from alice_nnunet.doctor.machine import DeviceState, FolderState
from alice_nnunet.doctor.runs import RunState, TrainingState
from alice_nnunet.text import millimetres

SHOWN_VERSIONS = ("alice-nnunet", "python", "nnunetv2", "torch", "monai", "numpy")
WIDTH = 20  # of the first column


def page(
    versions: dict[str, str],
    folders: list[FolderState],
    device: DeviceState | None,
    datasets: list[DatasetState],
    findings: Findings,
) -> str:
    """All of it, what is wrong last."""
    shown = [f"{name} {versions[name]}" for name in SHOWN_VERSIONS if name in versions]
    lines = [row("versions", ", ".join(shown) or "not readable")]
    lines += [row(folder.variable, folder_text(folder)) for folder in folders]
    lines.append(row("device", device_text(device) if device else "not readable"))

    for dataset in datasets:
        lines += ["", dataset.name, *dataset_lines(dataset)]
    if not datasets:
        lines += ["", "no datasets"]

    lines += listed("to know", findings.notes)
    lines += listed("PROBLEMS", findings.problems) or ["", "no problems"]
    return "\n".join(lines)


def row(name: str, text: str) -> str:
    return f"{name:<{WIDTH}}{text}"


def listed(title: str, sentences: list[str]) -> list[str]:
    """Sentences under a title; nothing where there are none."""
    if not sentences:
        return []
    return ["", f"{title} ({len(sentences)})", *(f"  {sentence}" for sentence in sentences)]


def folder_text(folder: FolderState) -> str:
    if folder.path is None:
        return "not set"
    state = [] if folder.exists else ["does not exist"]
    state.append("writable" if folder.writable else "not writable")
    return f"{folder.path}: {', '.join(state)}, {folder.free_gb} GB free"


def device_text(device: DeviceState) -> str:
    what = "; ".join(device.gpus) or f"CPU, {device.cores} cores"
    return f"{what}: {device.meaning}"


def dataset_lines(dataset: DatasetState) -> list[str]:
    """A line for each part of a dataset that is there."""
    lines = []
    if dataset.raw:
        lines.append(row("  raw", raw_text(dataset.raw)))
    if dataset.volumes:
        lines.append(row("  volumes", volumes_text(dataset.volumes)))
    if dataset.index:
        total = dataset.volumes.cases if dataset.volumes else None
        lines.append(row("  index", index_text(dataset.index, total)))
    for plans in dataset.plans:
        there = "there" if plans.weights_exist else "MISSING"
        lines.append(row(f"  {plans.name}", f"{plans.encoder}, weights {there}: {plans.weights}"))
    for run in dataset.runs:
        lines.append(row(f"  run {run.name}", run_text(run)))
    for training in dataset.trainings:
        lines.append(row("  trained", training_text(training)))
    return lines or ["  nothing that can be used"]


def raw_text(raw: RawState) -> str:
    text = f"{raw.cases} scans"
    if raw.rejected:
        text += f", {raw.rejected} not usable (alice-check -d says why)"
    return text + (", labeled" if raw.labeled else "")


def volumes_text(volumes: VolumesState) -> str:
    preset = " or ".join(volumes.presets)
    of = f"preset {preset}" if preset else "a spacing of your own"
    text = f"{volumes.cases} of {of}, {millimetres(volumes.spacing)}"
    if volumes.failed:
        text += f", {volumes.failed} scans failed"
    return text + work_text(volumes.at_work)


def index_text(index: IndexState, total: int | None) -> str:
    """total: number of volumes, None if unknown."""
    of = "" if total is None else f" of {total}"
    text = f"matcher of preset {index.preset}, {millimetres(index.spacing)}, "
    if index.finished:
        text += f"trained; {index.cases}{of} volumes indexed"
    else:
        text += f"step {index.step} of {index.steps}"
    return text + work_text(index.at_work)


def run_text(run: RunState) -> str:
    done = f"finished, {run.step} steps" if run.finished else f"step {run.step} of {run.steps}"
    return f"preset {run.preset}, {millimetres(run.spacing)}, {done}{work_text(run.at_work)}"


def training_text(training: TrainingState) -> str:
    words = []
    if training.finished:
        words.append(f"fold {', '.join(training.finished)} finished")
    if training.unfinished:
        words.append(f"fold {', '.join(training.unfinished)} unfinished")
    return f"{training.name}: {'; '.join(words)}"


def work_text(process: str) -> str:
    return f"; at work: {process}" if process else ""
