"""What happens to the data, and to the processes that read them, while alice-pretrain trains."""

import json
import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from alice_nnunet.checkpoint import load_checkpoint
from alice_nnunet.pretrain.commands.pretrain import main
from alice_nnunet.pretrain.datasets.preprocessing import preprocess_dataset
from tests.helpers.warm_processes import start_command

SETTINGS = [
    f"--set={s}"
    for s in (
        "precision=fp32",  # whatever the CPU has
        "iterations=100000",
        "batch_size=2",
        "width=48",
        "depth=3",
        "heads=2",
        "decoder_width=48",
        "decoder_depth=1",
        "head_hidden=64",
        "save_every=2",
        "log_every=50",
        "validation_share=0",
    )
]
CASES = ("crlm1004", "cptacpda_c3l00189", "ts_dicomslab")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, shipped_ct) -> Path:
    """A folder with raw/ and preprocessed/ of three real people."""
    root = tmp_path_factory.mktemp("nnunet")
    raw = root / "raw" / "Dataset031_Torso"
    (raw / "imagesTr").mkdir(parents=True)
    for case in CASES:
        (raw / "imagesTr" / f"{case}_0000.nii.gz").symlink_to(shipped_ct[case])
    (raw / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_raw", str(root / "raw"))
        patch.setenv("nnUNet_preprocessed", str(root / "preprocessed"))
        preprocess_dataset(31, 1, spacing=(3.0, 3.0, 3.0), patch_size=(32, 64, 64))
    return root


class Training:
    """A real run of the command on its own copy of the volumes, past its first checkpoint."""

    def __init__(self, prepared: Path, folder: Path, workers: int):
        shutil.copytree(prepared / "preprocessed", folder / "preprocessed")
        dataset = folder / "preprocessed" / "Dataset031_Torso"
        self.volumes = dataset / "AlicePretrainPlans_3d_fullres"
        results = folder / "results" / "Dataset031_Torso"
        self.run = results / "AlicePretrain__AlicePretrainPlans__3d_fullres" / "vit"
        self.latest = self.run / "checkpoint_latest.pth"

        self.output = folder / "output.txt"

        options = "-d 31 -encoder vit -preset tiny -matcher body -device cpu"
        environment = {
            **os.environ,
            "nnUNet_raw": str(prepared / "raw"),
            "nnUNet_preprocessed": str(folder / "preprocessed"),
            "nnUNet_results": str(folder / "results"),
        }
        words = [*options.split(), *SETTINGS, f"--set=workers={workers}"]
        self.process = start_command(main, words, environment, self.output)
        while not self.latest.exists():
            assert self.process.is_alive(), self.output.read_text()
            time.sleep(0.05)

    def loaders(self) -> list[int]:
        """The processes that load."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def ended(self, pids: list[int]) -> bool:
        """Whether all of these processes end within a minute; killed ones do so at once."""
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def stop_writes(self) -> None:
        """Put a folder where the next checkpoint would be written."""
        partial = self.latest.with_name("checkpoint_latest.pth.partial")
        while not partial.is_dir():
            with suppress(FileExistsError):  # of a checkpoint that is being written
                partial.mkdir()

    def last_word(self) -> str:
        """The error that the run ends with: one line, code 2, and a checkpoint that loads."""
        self.process.join()
        output = self.output.read_text()
        assert self.process.exitcode == 2 and "Traceback" not in output, output
        assert load_checkpoint(self.latest)["step"] % 2 == 0
        return output.splitlines()[-1]


def overwrite(path: Path) -> None:
    """Other bytes in the middle of the file, in place."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 4)
        file.write(os.urandom(path.stat().st_size // 2))


def cut_off(path: Path) -> None:
    """A file with the beginning alone in the place of the whole one, as an interrupted copy leaves.

    Cut off in place, a file that is being read ends the process that reads it (SIGBUS of a map).
    """
    part = path.with_suffix(".part")
    part.write_bytes(path.read_bytes()[:5000])
    part.replace(path)


FAULTS = {
    "gone": ("b2nd", Path.unlink, 0),
    "overwritten": ("b2nd", overwrite, 1),
    "cut off": ("b2nd", cut_off, 1),
    "unreadable": ("pkl", lambda path: path.write_bytes(b"no such thing"), 0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_data_that_break_end_the_run_with_the_files_name(prepared, tmp_path, fault):
    ending, breaks, workers = FAULTS[fault]
    training = Training(prepared, tmp_path, workers)
    for case in CASES[:2]:  # with one of three left, no pair is without them
        breaks(training.volumes / f"{case}.{ending}")

    word = training.last_word()
    assert word.startswith("alice-pretrain: ")
    assert any(f"{case}.{ending}" in word for case in CASES[:2])
    assert "alice-preprocess -d Dataset031_Torso" in word


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_loads_and_ends_is_reported(prepared, tmp_path, number):
    training = Training(prepared, tmp_path, 2)
    loaders = training.loaders()
    assert len(loaders) == 2
    os.kill(loaders[-1], number)

    word = training.last_word()
    assert "one of 2 processes that load data has ended" in word
    assert "alice-pretrain --c --set workers=1" in word
    assert training.ended(loaders)


def test_a_run_with_loading_processes_that_cannot_save_ends(prepared, tmp_path):
    training = Training(prepared, tmp_path, 2)
    loaders = training.loaders()
    training.stop_writes()
    assert "checkpoint_latest.pth could not be written" in training.last_word()
    assert training.ended(loaders)
