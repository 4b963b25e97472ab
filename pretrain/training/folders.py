"""The folders of runs: each run has one of its own, which it locks while it works.

The results of a dataset hold ENCODER, ENCODER_1, ENCODER_2 and so on for runs without a name, and
ENCODER_NAME for those with one. No folder is ever renamed. (Earlier versions did: there, ENCODER
is the newest, and the numbers grow with age.)
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from alice_nnunet.environment import nnunet_folder
from alice_nnunet.errors import UserError
from alice_nnunet.files import Held, at_work, locked, require_writable
from alice_nnunet.names import FINAL, LATEST, LOCK, RUNS

CONFIG = "config.json"

# What a run that ended before its first checkpoint leaves, and the next one in its folder removes.
LEFTOVERS = ("events.out.tfevents*", "*.png", "*.jsonl", "training_log.txt", CONFIG)


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, and where it goes on.

    Attributes:
        path: Of the results.
        checkpoint: To go on from, None for a run that starts.
    """

    path: Path
    checkpoint: Path | None = None


def results_of(dataset: str) -> Path:
    """Where the runs of a dataset, DatasetXXX_NAME, are."""
    return nnunet_folder("nnUNet_results") / dataset / RUNS


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to resume from: of the end of a run if it has ended, else the latest."""
    for name in (FINAL, LATEST):
        if (folder / name).is_file():
            return folder / name
    return None


def is_finished(folder: Path) -> bool:
    return (folder / FINAL).is_file()


def runs_in(results: Path, encoder: str = "*") -> list[Path]:
    """The folders of the runs of an encoder, or of all, from the oldest to the newest."""
    found = [*results.glob(encoder), *results.glob(f"{encoder}_*")]
    runs = [path for path in set(found) if newest_checkpoint(path) or (path / CONFIG).is_file()]
    return sorted(runs, key=last_change)


def last_change(folder: Path) -> float:
    """When a run was last saved, in seconds."""
    return (newest_checkpoint(folder) or folder / CONFIG).stat().st_mtime


def describe_runs(results: Path, but: Path | None = None) -> str:
    """'nnformer (finished), nnformer_1 (in training), nnformer_long (unfinished)', or 'none'."""
    words = []
    for run in sorted(runs_in(results)):
        if run == but:
            continue
        state = "finished" if is_finished(run) else "unfinished"
        if at_work(run / LOCK):
            state = "in training"
        words.append(f"{run.name} ({state})")
    return ", ".join(words) or "none"


def chosen_run(results: Path, encoder: str, name: str | None) -> RunFolder | None:
    """The run that --c goes on with, or None where there is none.

    Args:
        results: Folder of all runs.
        encoder: Of the run.
        name: Of the run, None for the newest unfinished one, or where all are finished the newest.
    """
    if name:
        folder = results / f"{encoder}_{name}"
        runs = [folder] if folder in runs_in(results, encoder) else []
    else:
        runs = runs_in(results, encoder)
        runs = [run for run in runs if not is_finished(run)] or runs

    return RunFolder(runs[-1], newest_checkpoint(runs[-1])) if runs else None


def new_folders(results: Path, encoder: str, name: str | None) -> Iterator[Path]:
    """Folders that a new run may have, in order; those of runs with a checkpoint are left out.

    Raises:
        UserError: A run of this name exists.
    """
    if name:
        folder = results / f"{encoder}_{name}"
        if newest_checkpoint(folder):
            raise UserError(
                f"a run named {name} exists: {folder}. Go on with it (-n {name} --c), or choose "
                "another name"
            )
        yield folder
        return

    for number in count():
        folder = results / (f"{encoder}_{number}" if number else encoder)
        if not newest_checkpoint(folder):
            yield folder


def planned_folder(results: Path, encoder: str, name: str | None, resume: bool) -> RunFolder:
    """The folder that a run would have now. Nothing is written or locked."""
    found = chosen_run(results, encoder, name) if resume else None
    return found or RunFolder(next(new_folders(results, encoder, name)))


@contextmanager
def own_folder(results: Path, encoder: str, name: str | None, resume: bool) -> Iterator[RunFolder]:
    """The folder of a run, locked until the block ends.

    Args:
        results: Folder of all runs.
        encoder: Of the run.
        name: Of the run (-n), or None.
        resume: Go on with a run (--c), if there is one.

    Raises:
        UserError: The run is being trained by another process, or its name is taken.
    """
    with ExitStack() as stack:
        found = chosen_run(results, encoder, name) if resume else None
        if found:
            stack.enter_context(locked(found.path / LOCK))
            # It may have gone on while this process waited for its lock.
            run = RunFolder(found.path, newest_checkpoint(found.path))
        else:
            run = first_free(stack, results, encoder, name)

        try:
            yield run
        finally:
            stack.close()
            remove_if_empty(run.path)


def first_free(stack: ExitStack, results: Path, encoder: str, name: str | None) -> RunFolder:
    """The first folder for a new run that no process works in, locked on the stack."""
    for folder in new_folders(results, encoder, name):
        require_writable(folder, "nnUNet_results")
        try:
            stack.enter_context(locked(folder / LOCK))
        except Held:
            if name:
                raise
            continue

        if newest_checkpoint(folder) is None:
            return RunFolder(folder)
    raise AssertionError("there is a folder for every number")


def remove_if_empty(folder: Path) -> None:
    """Remove the folder of a run that ended before it wrote anything."""
    if {path.name for path in folder.glob("*")} <= {LOCK}:
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()


def remove_leftovers(folder: Path) -> None:
    """Remove what a run without a checkpoint left: its log is not that of the next one."""
    for pattern in LEFTOVERS:
        for path in folder.glob(pattern):
            path.unlink()
