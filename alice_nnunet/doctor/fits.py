"""What fits together: volumes, index, runs and plans of one dataset."""

from alice_nnunet.doctor.datasets import DatasetState, IndexState, VolumesState
from alice_nnunet.doctor.findings import Findings
from alice_nnunet.doctor.runs import RunState
from alice_nnunet.text import millimetres


def compare_parts(state: DatasetState, findings: Findings) -> None:
    """Add what does not fit together in a dataset, or waits to be gone on with."""
    volumes = state.volumes
    if volumes:
        findings.notes += notes_on_volumes(state, volumes)
        if state.index:
            findings.problems += problems_of_index(state.name, volumes, state.index)
            findings.notes += notes_on_index(state.name, volumes, state.index)

    for run in state.runs:
        if run.finished or run.at_work:
            continue
        reasons = why_it_cannot_go_on(run, state)
        if reasons:
            findings.problems.append(
                f"{state.name}: run {run.name} stopped at step {run.step} of {run.steps} and "
                f"cannot go on: {' and '.join(reasons)}. Make them as they were, or start a new run"
            )
        else:
            findings.notes.append(
                f"{state.name}: run {run.name} stopped at step {run.step} of {run.steps}: "
                f"{command_to_go_on(state.name, run)} goes on"
            )

    for plans in state.plans:
        if not plans.weights_exist:
            findings.problems.append(
                f"{state.name}: the weights of {plans.name} are no longer at {plans.weights}, and "
                "no training would start: put them back, or plan again with alice-plan"
            )


def preset_options(presets: list[str]) -> str:
    """' -preset tiny' for commands; of several presets with one spacing the largest."""
    return f" -preset {presets[-1]}" if presets else ""


def notes_on_volumes(state: DatasetState, volumes: VolumesState) -> list[str]:
    """Preprocessing that was interrupted, and scans that came later."""
    if volumes.at_work:
        return []
    if not volumes.complete:
        return [
            f"{state.name}: preprocessing has not finished: alice-preprocess -d {state.name} goes "
            "on with it"
        ]

    later = state.raw.cases - volumes.cases - volumes.failed if state.raw else 0
    if later <= 0:
        return []
    return [
        f"{state.name}: scans of nnUNet_raw that are not preprocessed: {later}. alice-preprocess "
        f"-d {state.name} adds them"
    ]


def problems_of_index(name: str, volumes: VolumesState, index: IndexState) -> list[str]:
    """A matcher of volumes of another spacing."""
    if index.spacing == volumes.spacing:
        return []
    return [
        f"{name}: the matcher was trained on volumes of {millimetres(index.spacing)} (preset "
        f"{index.preset}), and now they have {millimetres(volumes.spacing)}: alice-embed -d {name}"
        f"{preset_options(volumes.presets)} --overwrite trains it again"
    ]


def notes_on_index(name: str, volumes: VolumesState, index: IndexState) -> list[str]:
    """A matcher or an index that was interrupted."""
    if index.at_work or index.spacing != volumes.spacing:
        return []

    command = f"alice-embed -d {name} -preset {index.preset}"
    if not index.finished:
        return [
            f"{name}: the matcher stopped at step {index.step} of {index.steps}: {command} goes on"
        ]
    if index.cases < volumes.cases:
        return [
            f"{name}: {index.cases} of {volumes.cases} volumes are indexed: {command} indexes the "
            "others"
        ]
    return []


def why_it_cannot_go_on(run: RunState, state: DatasetState) -> list[str]:
    """What --c would refuse, as parts of a sentence."""
    volumes = state.volumes
    if volumes is None:
        return ["its volumes are not there"]

    reasons = []
    if run.spacing != volumes.spacing:
        reasons.append(
            f"it began with volumes of {millimetres(run.spacing)} (preset {run.preset}), and now "
            f"they have {millimetres(volumes.spacing)}"
        )
    elif run.case_list_sha256 != volumes.case_list_sha256:
        reasons.append("it began with other volumes")

    matcher = state.index.sha256 if state.index else None
    if run.embedding_sha256 and run.embedding_sha256 != matcher:
        reasons.append("it began with another matcher")
    return reasons


def command_to_go_on(name: str, run: RunState) -> str:
    named = f" -n {run.given_name}" if run.given_name else ""
    return f"alice-pretrain -d {name} -encoder {run.encoder} -preset {run.preset}{named} --c"
