"""alice-pretrain as a user runs it: files, resuming bit for bit, wrong use.

test_killed.py has SIGKILL.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from alice_nnunet.checkpoint import load_checkpoint, load_pretraining, save_checkpoint
from alice_nnunet.errors import UserError
from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.names import FINAL
from alice_nnunet.pretrain.commands.pretrain import main
from alice_nnunet.pretrain.datasets.preprocessed import split_cases
from alice_nnunet.pretrain.training.config import config_from_dict
from alice_nnunet.pretrain.training.state import build_state
from tests.helpers.stopping import words as stopped

STEPS = 12
SETTINGS = [
    f"--set={s}"
    for s in (
        "precision=fp32",  # whatever the CPU has
        f"iterations={STEPS}",
        "batch_size=2",
        "width=48",
        "depth=3",
        "heads=2",
        "decoder_width=48",
        "decoder_depth=1",
        "head_hidden=64",
        "save_every=4",
        "log_every=4",
        "validate_every=6",
        "probe_every=6",
        "probe_pairs=4",
    )
]
RUN = "AlicePretrain__AlicePretrainPlans__3d_fullres"


@pytest.fixture(scope="module")
def folders(tmp_path_factory, shipped_ct, programs) -> dict:
    """Environment with a raw dataset of three real people; the first run preprocesses it.

    Commands start quickly in it.
    """
    root = tmp_path_factory.mktemp("nnunet")
    raw = root / "raw" / "Dataset031_Torso"
    (raw / "imagesTr").mkdir(parents=True)

    for case in ("crlm1004", "cptacpda_c3l00189", "ts_dicomslab"):
        (raw / "imagesTr" / f"{case}_0000.nii.gz").symlink_to(shipped_ct[case])
    description = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(description))

    return {
        **os.environ,
        "nnUNet_raw": str(root / "raw"),
        "nnUNet_preprocessed": str(root / "preprocessed"),
        "PATH": f"{programs}:{os.environ['PATH']}",
    }


def words(*more: str) -> list[str]:
    """Arguments of alice-pretrain."""
    options = "-d 31 -encoder vit -preset tiny -matcher body -device cpu -np 1"
    return [*options.split(), *SETTINGS, *more]


def start(
    folders: dict, results: Path, *more: str, program: Sequence[str] = ("alice-pretrain",)
) -> subprocess.Popen:
    file = shutil.which(program[0], path=folders["PATH"])
    return subprocess.Popen(
        [file, *program[1:], *words(*more)],
        env={**folders, "nnUNet_results": str(results)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(folders: dict, results: Path, *more: str) -> str:
    process = start(folders, results, *more)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def unbroken(folders, tmp_path_factory) -> tuple[Path, str]:
    results = tmp_path_factory.mktemp("unbroken")
    return results, finish(folders, results)


def test_the_first_run_preprocesses_and_leaves_what_the_design_lists(unbroken):
    results, output = unbroken
    folder = results / "Dataset031_Torso" / RUN / "vit"

    for words in (
        "this comes first",
        "vit tiny on cpu in fp32: ",
        f"step {STEPS}/{STEPS} | loss",
        " ema 0.9",
        " GB | left",
        "left 0:00:00",
        "of held-out crops find their match among 4 crops, chance 25.0%",
    ):
        assert words in output

    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json",
        "training_log.txt",
        "progress.png",
        "pair.png",
        "reconstruction.png",
        "checkpoint_final.pth",
    } <= names
    assert "checkpoint_latest.pth" not in names
    assert any(name.startswith("events.out.tfevents") for name in names)

    assert json.loads((folder / "config.json").read_text())["iterations"] == STEPS
    for picture in folder.glob("*.png"):
        assert picture.read_bytes()[:4] == b"\x89PNG" and picture.stat().st_size > 5000


def test_the_checkpoint_is_what_others_need(unbroken):
    path = unbroken[0] / "Dataset031_Torso" / RUN / "vit" / "checkpoint_final.pth"
    checkpoint = load_pretraining(path)  # weights_only=True

    encoder = build_encoder("vit", checkpoint["config"]["encoder_arguments"])
    encoder.load_state_dict(checkpoint["network_weights"], strict=True)
    assert checkpoint["step"] == STEPS

    data = checkpoint["data"]
    assert data["spacing"] == [3, 3, 3] and data["orientation"] == "RAS"
    assert data["channels"] == [{"name": "CT", "scheme": "CTNormalization", "window": [-125, 255]}]

    plan = checkpoint["adaptation_plan"]
    assert plan.keys() == {
        "architecture_plans",
        "pretrain_plan",
        "pretrain_num_input_channels",
        "recommended_downstream_patchsize",
        "key_to_encoder",
        "key_to_stem",
        "keys_to_in_proj",
        "key_to_lpe",
    }
    names = checkpoint["network_weights"]
    assert plan["key_to_lpe"] in names and plan["keys_to_in_proj"][0] + ".weight" in names
    assert any(name.startswith(plan["key_to_encoder"] + ".") for name in names)

    assert {name.split(".")[0] for name in checkpoint["model"]} == {
        "encoder",
        "decoder",
        "phi",
        "casa",
        "predictors",
        "target_encoder",
        "psi",
        "target_casa",
        "center_dv",
        "center_st",
        "memory",
    }

    history = checkpoint["history"]
    assert {
        "l_r",
        "l_dv",
        "spread cls",
        *(f"rank {name}" for name in ("cls", "V")),
        *(f"gradient {name}" for name in ("l_r", "l_dv")),
        "validation l_r",
        "rejection rate",
        "ema",
        "memory",
    } <= history.keys()
    assert [step for step, _ in history["retrieval"]] == [0, 6, STEPS]


def assert_same_end(results: Path, others: Path) -> None:
    """Both runs ended with the same weights and the same optimizer, bit for bit."""
    ours, theirs = (
        load_checkpoint(root / "Dataset031_Torso" / RUN / "vit" / "checkpoint_final.pth")
        for root in (results, others)
    )

    assert ours["model"].keys() == theirs["model"].keys()
    assert all(torch.equal(ours["model"][name], theirs["model"][name]) for name in ours["model"])

    ours, theirs = (run["optimizer"]["state"] for run in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for number, state in ours.items():
        assert all(torch.equal(state[name], theirs[number][name]) for name in state)


def stop(folders: dict, results: Path, step: int, number: int, *more: str) -> int:
    """Send a run a signal in the step after so many. It must end after that step, and save it.

    Returns its exit code.
    """
    program = stopped(["stopping"], "alice-pretrain", step, number)
    process = start(folders, results, *more, program=program)
    output = process.communicate()[0]

    name = signal.Signals(number).name
    assert f"stopped by {name} after step {step + 1}, which is saved" in output
    latest = results / "Dataset031_Torso" / RUN / "vit" / "checkpoint_latest.pth"
    assert load_checkpoint(latest)["step"] == step + 1
    return process.returncode


def test_asked_to_end_it_saves_and_goes_on_with_the_same_weights(folders, unbroken, tmp_path):
    assert stop(folders, tmp_path, 5, signal.SIGUSR1, "--c") == 75
    assert stop(folders, tmp_path, 8, signal.SIGINT, "--c") == 130
    finish(folders, tmp_path, "--c")
    assert_same_end(tmp_path, unbroken[0])


def test_two_processes_stop_together_and_one_goes_on(folders, unbroken, tmp_path):
    """Two with half the batch, SIGTERM, then one with the whole batch: the end of the unbroken run.

    But for rounding: the gradients are added in another order, and AdamW turns the last bits of
    small ones into whole steps of single weights. All weights together end near the others.
    """
    assert stop(folders, tmp_path, 6, signal.SIGTERM, "-num_gpus", "2", "--set=batch_size=1") == 75

    run = Path("Dataset031_Torso") / RUN / "vit"
    saved = load_checkpoint(tmp_path / run / "checkpoint_latest.pth")
    assert saved["processes"] == 2 and saved["config"]["batch_size"] == 1

    finish(folders, tmp_path, "--c")
    ours, theirs = (
        load_checkpoint(root / run / "checkpoint_final.pth")["model"]
        for root in (tmp_path, unbroken[0])
    )
    before = build_state(config_from_dict(saved["config"]), torch.device("cpu")).model.state_dict()
    assert distance(ours, theirs) < 0.01 * distance(before, theirs)


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Euclidean distance of all weights."""
    return sum((ours[name] - theirs[name]).square().sum().item() for name in theirs) ** 0.5


def test_a_full_disk_ends_a_run_with_one_line_and_the_last_checkpoint_intact(
    folders, unbroken, tmp_path, monkeypatch, capsys
):
    latest = tmp_path / "Dataset031_Torso" / RUN / "vit" / "checkpoint_latest.pth"
    latest.parent.mkdir(parents=True)
    checkpoint = load_checkpoint((unbroken[0] / latest.relative_to(tmp_path)).with_name(FINAL))
    save_checkpoint(latest, {**checkpoint, "step": STEPS - 4})
    for name, value in {**folders, "nnUNet_results": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)

    # No file may be longer than half a checkpoint.
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (latest.stat().st_size // 2, limit[1]))
    try:
        with pytest.raises(SystemExit) as left:
            main([*words(), "--c"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count("\n") == 1
    assert "checkpoint_final.pth could not be written" in error
    assert load_checkpoint(latest)["step"] == STEPS - 4
    assert not list(latest.parent.glob("*.partial"))


def test_a_dry_run_says_what_would_be_done_and_touches_nothing(
    folders, unbroken, tmp_path, monkeypatch, capsys
):
    folder = unbroken[0] / "Dataset031_Torso" / RUN / "vit"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    for name, value in {**folders, "nnUNet_results": str(unbroken[0])}.items():
        monkeypatch.setenv(name, value)

    main([*words(), "--dry-run", "-num_gpus", "4"])
    plan = capsys.readouterr().out
    assert "2 training and 1 held-out volumes" in plan
    assert "2 pairs x 4 processes = 8 pairs in a step" in plan
    assert "the earlier ones are kept: vit (finished)" in plan
    assert re.search(
        rf"time +0:\d\d:\d\d for {STEPS} steps of [0-9.]+ s, "
        "by the fastest of two steps with 2 pairs",
        plan,
    )
    assert folder.with_name("vit_dry_run.png").read_bytes()[:4] == b"\x89PNG"

    main([*words(), "--dry-run", "--c"])
    assert f"resumes from step {STEPS}" in capsys.readouterr().out

    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "none"))
    main([*words(), "--dry-run"])
    assert "3 cases, not (completely) preprocessed." in capsys.readouterr().out
    assert not list(tmp_path.iterdir())

    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_another_run_leaves_the_earlier_one_where_it_is(folders, unbroken):
    folder = unbroken[0] / "Dataset031_Torso" / RUN / "vit"
    weights = (folder / "checkpoint_final.pth").read_bytes()
    short = ("--set=iterations=4", "--set=warmup_iterations=1")

    output = finish(folders, unbroken[0], *short)
    assert "vit_1; the earlier ones are kept: vit (finished)" in output
    assert (folder / FINAL).read_bytes() == weights
    assert load_checkpoint(folder.with_name("vit_1") / FINAL)["step"] == 4

    finish(folders, unbroken[0], *short, "-n", "short")
    assert load_checkpoint(folder.with_name("vit_short") / FINAL)["step"] == 4

    with pytest.raises(UserError) as missing:
        load_pretraining(folder.with_name("vit_long") / FINAL)
    assert str(folder.with_name("vit_short") / FINAL) in str(missing.value)


def test_another_method_has_folders_of_its_own_and_goes_on(folders, unbroken, tmp_path):
    method = ("-method", "mae", "--c", "--set=iterations=6", "--set=warmup_iterations=1")
    own = [word for word in words() if "head_hidden" not in word]  # a setting of Alice

    def run(results: Path, program: list[str]) -> str:
        done = subprocess.run(
            [shutil.which(program[0], path=folders["PATH"]), *program[1:], *own, *method],
            env={**folders, "nnUNet_results": str(results)},
            capture_output=True,
            text=True,
        )
        return done.stdout + done.stderr

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert "l_r " in run(whole, ["alice-pretrain"])
    output = run(broken, stopped(["stopping"], "alice-pretrain", 4, signal.SIGTERM))
    assert "stopped by SIGTERM after step 5, which is saved" in output
    output = run(broken, ["alice-pretrain"])
    assert "resuming from step 5" in output and "step 6/6 | loss" in output

    final = Path("Dataset031_Torso") / RUN / "mae_vit" / FINAL
    ours, theirs = (load_checkpoint(root / final) for root in (broken, whole))
    assert ours["config"]["method_name"] == "mae"
    assert all(torch.equal(ours["model"][n], value) for n, value in theirs["model"].items())


def test_two_at_once_have_a_folder_each(folders, unbroken, tmp_path):
    both = [start(folders, tmp_path) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs

    runs = tmp_path / "Dataset031_Torso" / RUN
    assert {path.name for path in runs.iterdir() if (path / FINAL).is_file()} == {"vit", "vit_1"}
    assert_same_end(tmp_path, unbroken[0])


@pytest.mark.parametrize(
    "change, message",
    [
        (
            ["--c", "--set=lr=0.1"],
            "lr is 0.1 on the command line but 0.0003 in the saved run. Use the "
            "original settings, or omit --c to start a new run",
        ),
        (["--set=width=50", "--set=heads=4"], "multiple of heads"),
        (["--set=speed=3"], "unknown setting"),
        (["-preset", "huge"], "invalid choice"),
        (["-n", "7"], "not a number alone, got '7'"),
        (["-num_gpus", "0"], "-num_gpus: must be at least 1, got 0"),
        (["-num_gpus", "2", "--set=lr=-1"], "lr must be positive"),
        (["-d", "77"], "no dataset with the ID 77"),
        (["-encoder", "resnet"], "invalid choice"),
        (["-config", "none.json"], "not a readable JSON"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(folders, unbroken, change, message, monkeypatch, capsys):
    for name, value in {**folders, "nnUNet_results": str(unbroken[0])}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as left:
        main([*words(), *change])
    error = capsys.readouterr().err
    assert left.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none_is_refused_by_the_real_command(folders, unbroken):
    real = str(Path(sys.executable).with_name("alice-pretrain"))
    process = start(folders, unbroken[0], "-device", "cuda", program=[real])
    output = process.communicate()[0]
    assert (
        process.returncode == 2
        and output.count("\n") == 1
        and output.strip().endswith("use -device cpu")
    )


def test_help_and_wrong_options_import_no_torch():
    """They answer at once, not after the seconds that torch and nnU-Net take."""
    code = """
import sys
from alice_nnunet.pretrain.commands import embed, pretrain

for main in (embed.main, pretrain.main):
    for words in ("-h", "", "-d 1 -preset huge", "-d 1 --set lr=-1", "-d 1 --set speed=1"):
        try:
            main(words.split())
        except SystemExit:
            continue
        raise AssertionError(words)

assert not {"torch", "numpy", "nnunetv2", "monai"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_split_holds_out_a_tenth():
    cases = [f"c{i}" for i in range(50)]
    training, held_out = split_cases(cases, 0.1, 0)
    assert len(held_out) == 5 and sorted(training + held_out) == sorted(cases)
    assert split_cases(cases, 0.1, 0) == (training, held_out)
    assert split_cases(cases, 0.0, 0)[1] == []

    # At least one, where two remain for training.
    assert [len(part) for part in split_cases(cases[:3], 0.1, 0)] == [2, 1]
    assert [len(part) for part in split_cases(cases[:2], 0.1, 0)] == [2, 0]
    with pytest.raises(UserError, match="at least 2 volumes"):
        split_cases(cases[:1], 0.1, 0)
