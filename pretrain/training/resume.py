"""Going on with an earlier run (--c), and keeping it where a new one starts."""

from pathlib import Path

from alice_nnunet.checkpoint import load_checkpoint
from alice_nnunet.errors import UserError
from alice_nnunet.files import file_sha256, write_json_atomically
from alice_nnunet.names import FINAL, LATEST
from alice_nnunet.pretrain.training.config import PretrainConfig, config_from_dict
from alice_nnunet.settings.reading import differences, flatten

# Settings that --c may change: they decide how a run is computed and when it is saved, not what
# comes out of it. Only min_score changes the pairs from here on: a threshold that does not fit the
# data must not cost the steps that are done.
CHANGEABLE = (
    "min_score",
    "workers",
    "accumulate",
    "checkpoint_blocks",
    "compile",
    "max_nonfinite",
    "log_every",
    "validate_every",
    "probe_every",
    "probe_pairs",
    "save_every",
)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to resume from: of the end of a run if it has ended, else the latest."""
    for name in (FINAL, LATEST):
        if (folder / name).is_file():
            return folder / name
    return None


def resumed_config(
    checkpoint: Path,
    requested: PretrainConfig,
    given: dict,
    data: dict,
    matcher: Path,
    processes: int,
) -> PretrainConfig:
    """The config of the run in a checkpoint, with those changes that --c allows.

    Args:
        checkpoint: To resume from.
        requested: Config that the command would start a new run with.
        given: Names and values of the settings that the user gave.
        data: Description of the data as it is now.
        matcher: Weights of the matcher, of which the run must have the same.
        processes: That would train together now. Each takes its part of a step's pairs.

    Raises:
        UserError: The settings, the data or the matcher are not those of the run.
    """
    saved = load_checkpoint(checkpoint)

    pairs = saved["config"]["batch_size"] * saved.get("processes", 1)
    if pairs % processes:
        raise UserError(
            f"Cannot resume: {processes} processes cannot share the {pairs} pairs in a step of the "
            "saved run evenly. Use another number of processes"
        )

    changes = {name: value for name, value in given.items() if name in CHANGEABLE}
    try:
        config = config_from_dict({**saved["config"], **changes, "batch_size": pairs // processes})
    except ValueError as error:
        raise UserError(f"Cannot resume: {error}") from None

    # Only what the user gave must agree: the rest is the run's, whatever the presets are now.
    wanted = flatten(requested.as_dict(), ())
    wanted = {name: wanted[name] for name in ("preset", *given)}

    changed = differences(
        flatten(config.as_dict(), ()), wanted, "on the command line", "in the saved run"
    )
    changed += differences(saved["data"], data, "in the data now", "in the saved run")

    if config.matcher == "embedding":
        now = file_sha256(matcher) if matcher.is_file() else None
        if now != saved["data"]["embedding_sha256"]:
            changed.append(f"{matcher} is not the matcher that the saved run was started with")

    if changed:
        raise UserError(
            f"Cannot resume: {'; '.join(changed)}. Use the original settings, or omit --c to "
            "start a new run (the existing run is kept under another name)"
        )
    return config


def prepare_folder(
    folder: Path, config: PretrainConfig, checkpoint: Path | None, step: int, resume: bool
) -> None:
    """Make the folder of a run that starts or goes on, and write its config.json.

    Args:
        folder: Of the results.
        config: Of the run.
        checkpoint: The run goes on from it, None for a new run.
        step: At which the run goes on.
        resume: Whether the user asked for it (--c).
    """
    if checkpoint:
        print(f"resuming from step {step} of {checkpoint}", flush=True)
    else:
        if resume:
            print(f"--c: no checkpoint in {folder}, starting a new run", flush=True)
        keep_earlier_run(folder)

    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomically(folder / "config.json", config.as_dict())


def keep_earlier_run(folder: Path) -> None:
    """Rename the folder of an earlier run: ENCODER becomes ENCODER_1, ENCODER_2, ..."""
    if not any(folder.glob("checkpoint_*.pth")):
        return

    number = 1
    while folder.with_name(f"{folder.name}_{number}").exists():
        number += 1

    folder.rename(folder.with_name(f"{folder.name}_{number}"))
    print(
        f"an earlier run was in {folder}. It is kept as {folder.name}_{number} "
        "(use --c to resume a run)",
        flush=True,
    )
