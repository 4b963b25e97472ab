"""Going on with an earlier run (--c), and what is said where one starts."""

from pathlib import Path

from alice_nnunet.checkpoint import load_checkpoint
from alice_nnunet.errors import UserError
from alice_nnunet.files import file_sha256, write_json_atomically
from alice_nnunet.pretrain.training.config import PretrainConfig, config_from_dict
from alice_nnunet.pretrain.training.folders import (
    CONFIG,
    RunFolder,
    describe_runs,
    remove_leftovers,
)
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
    "probe_labels",
    "save_every",
)


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
    if wanted.get("precision") == "auto":
        del wanted["precision"]  # whatever it was when the run began

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
            "start a new run (this one is kept)"
        )
    return config


def check_partners(checkpoint: Path, table: Path) -> None:
    """Compare the table that pairs are drawn from with that of the run in a checkpoint.

    Args:
        checkpoint: To resume from.
        table: PARTNERS of the index, as alice-embed leaves it now.

    Raises:
        UserError: It is another one: the pairs would not be those of the run.
    """
    # Runs that drew at random, and those of earlier versions, have none.
    wanted = load_checkpoint(checkpoint)["data"].get("partners_sha256")
    if wanted is not None and file_sha256(table) != wanted:
        raise UserError(
            f"Cannot resume: {table} is not the one that the saved run was started with, and pairs "
            "are drawn from it. Put that file back, or omit --c to start a new run (this one is "
            "kept)"
        )


def prepare_folder(run: RunFolder, config: PretrainConfig, step: int, resume: bool) -> None:
    """Say whether a run starts or goes on, and write its config.json into its folder.

    Args:
        run: Its folder, which this process has locked.
        config: Of the run.
        step: At which the run goes on.
        resume: Whether the user asked for it (--c).
    """
    folder = run.path

    if run.checkpoint:
        print(f"resuming from step {step} of {run.checkpoint}", flush=True)
        if step >= config.iterations:
            print("this run is finished; omit --c to start a new one", flush=True)
    else:
        remove_leftovers(folder)
        say_that_it_is_new(folder, resume)

    write_json_atomically(folder / CONFIG, config.as_dict())


def say_that_it_is_new(folder: Path, resume: bool) -> None:
    """Print where a new run goes and which others there are."""
    earlier = describe_runs(folder.parent, but=folder)

    if resume:
        print(
            f"--c: no checkpoint in {folder}, starting a new run (other runs: {earlier})",
            flush=True,
        )
    elif earlier != "none":
        print(
            f"a new run, in {folder}; the earlier ones are kept: {earlier}. --c goes on with the "
            "newest unfinished one",
            flush=True,
        )
