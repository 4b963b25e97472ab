"""Pretrainings and nnU-Net's trainings: how far each one is, and who works on it."""

from dataclasses import dataclass
from pathlib import Path

from alice_nnunet.checkpoint import glance_at
from alice_nnunet.doctor.findings import Findings
from alice_nnunet.files import at_work
from alice_nnunet.geometry import Spacing
from alice_nnunet.names import FINAL, LATEST, LOCK


@dataclass(frozen=True)
class RunState:
    """A pretraining.

    Attributes:
        name: of its folder, such as nnformer_1.
        encoder: vit, swin or nnformer.
        preset: tiny, small or paper.
        spacing: mm, (z, y, x), of the volumes that it began with.
        step: that was saved last.
        steps: that it takes.
        finished: whether it has ended.
        at_work: the process that trains, or "".
        embedding_sha256: of the matcher that it began with, None if it uses none.
        case_list_sha256: of the volumes that it began with.
    """

    name: str
    encoder: str
    preset: str
    spacing: Spacing
    step: int
    steps: int
    finished: bool
    at_work: str
    embedding_sha256: str | None
    case_list_sha256: str

    @property
    def given_name(self) -> str | None:
        """What -n named it; None for a run with a number or without."""
        rest = self.name.removeprefix(self.encoder).removeprefix("_")
        return None if not rest or rest.isdecimal() else rest


@dataclass(frozen=True)
class TrainingState:
    """nnU-Net's trainings of one trainer, plans and configuration: finished and other folds."""

    name: str
    finished: list[str]
    unfinished: list[str]


def runs_of(folder: Path, findings: Findings) -> list[RunState]:
    """The pretrainings in a folder. One without a checkpoint is a note if nobody works on it."""
    runs = []
    for path in sorted(entry for entry in folder.glob("*") if entry.is_dir()):
        with findings.reading(f"{path}"):
            saved = [path / name for name in (FINAL, LATEST) if (path / name).is_file()]
            if saved:
                runs.append(look_at_run(path, saved[0]))
            elif at_work(path / LOCK):
                findings.notes.append(
                    f"{path} has no checkpoint yet; {at_work(path / LOCK)}, works in it"
                )
    return runs


def look_at_run(folder: Path, path: Path) -> RunState:
    """The run whose checkpoint is at path."""
    checkpoint = glance_at(path)
    config = checkpoint["config"]
    data = checkpoint["data"]
    z, y, x = data["spacing"]
    by_index = config["matcher"] == "embedding"

    return RunState(
        name=folder.name,
        encoder=config["encoder"],
        preset=config["preset"],
        spacing=(z, y, x),
        step=checkpoint["step"],
        steps=config["iterations"],
        finished=path.name == FINAL,
        at_work=at_work(folder / LOCK),
        embedding_sha256=data.get("embedding_sha256") if by_index else None,
        case_list_sha256=data["case_list_sha256"],
    )


def trainings_of(folder: Path) -> list[TrainingState]:
    """nnU-Net's trainings in a dataset's folder of results."""
    trainings = []
    for path in sorted(folder.glob("*__*__*")):
        folds = {fold.name.removeprefix("fold_"): fold for fold in sorted(path.glob("fold_*"))}
        started = [name for name, fold in folds.items() if any(fold.glob("checkpoint_*.pth"))]
        finished = [name for name in started if (folds[name] / FINAL).is_file()]
        if started:
            others = [name for name in started if name not in finished]
            trainings.append(TrainingState(path.name, finished, others))
    return trainings
