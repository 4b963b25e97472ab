"""alice-embed as a user runs it, and alice-pretrain on its matches: real CT, few steps."""

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from alice_nnunet.checkpoint import load_checkpoint
from alice_nnunet.data.match import Match
from alice_nnunet.data.pairs import MATCHED
from alice_nnunet.errors import UserError
from alice_nnunet.matcher.context import ContextNet
from alice_nnunet.matcher.index import open_embedding
from alice_nnunet.matcher.network import SamNet
from alice_nnunet.matcher.presets import PRESETS
from alice_nnunet.matcher.released import released_name
from alice_nnunet.matcher.weights import load_network
from alice_nnunet.pretrain.commands.embed import main
from alice_nnunet.pretrain.commands.pretrain import main as pretrain
from alice_nnunet.pretrain.datasets.preprocessed import split_cases
from alice_nnunet.pretrain.embedding.config import EmbedConfig, embed_config, embed_config_from_dict
from alice_nnunet.pretrain.embedding.job import read_released, take_released
from alice_nnunet.pretrain.training import run as pretraining
from tests.helpers.stopping import words as stopped

CASES = ("crlm1004", "cptacpda_c3l00189", "lidc0314")
SMALL = ["-preset", "tiny", "-device", "cpu", "-np", "1"] + [
    f"--set={s}"
    for s in (
        "features=sam",
        "iterations=8",
        "batch_size=2",
        "points=64",
        "widths=4,4,8,8",
        "channels=4",
        "patch_size=16,32,32",
        "crop_size=20,40,40",
        "voxel=8",
        "step=16",
        "save_every=2",
        "log_every=2",
        "validate_every=4",
    )
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, shipped_ct, programs) -> dict:
    """Environment with a raw dataset of three people; commands start quickly in it."""
    root = tmp_path_factory.mktemp("nnunet")
    raw = root / "raw" / "Dataset032_Torso"
    (raw / "imagesTr").mkdir(parents=True)

    for case in CASES:
        (raw / "imagesTr" / f"{case}_0000.nii.gz").symlink_to(shipped_ct[case])
    description = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(description))

    return {
        **os.environ,
        "nnUNet_raw": str(root / "raw"),
        "nnUNet_preprocessed": str(root / "preprocessed"),
        "nnUNet_results": str(root / "results"),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }


def anatomy(folders: dict) -> Path:
    return Path(folders["nnUNet_preprocessed"]) / "Dataset032_Torso" / "AlicePretrainPlans_anatomy"


def run(folders: dict, command: Callable, *words: str) -> str:
    """Run a command in this process, on one thread as the killed one; what it prints."""
    printed = io.StringIO()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with patch.dict(os.environ, folders), redirect_stdout(printed):
            command(["-d", "32", *words])
    finally:
        torch.set_num_threads(threads)
    return printed.getvalue()


def stop(folders: dict, step: int, number: int, *words: str) -> subprocess.CompletedProcess:
    """Send alice-embed a signal in the step after so many."""
    program = shutil.which("stopping", path=folders["PATH"])
    words = (*stopped([program], "alice-embed", step, number), "-d", "32", *words)
    return subprocess.run(words, env=folders, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def embedded(folders) -> str:
    """What a first alice-embed prints; it is killed once and started again."""
    assert stop(folders, 5, signal.SIGKILL, *SMALL).returncode == -signal.SIGKILL
    return run(folders, main, *SMALL)


def test_it_goes_on_where_it_was_killed_and_leaves_what_is_promised(folders, embedded):
    for words in ("resuming from step", "step 8/8 | fine", "3 of 3 volumes are indexed (3 new)"):
        assert words in embedded

    names = {path.name for path in anatomy(folders).iterdir()}
    assert {
        "config.json",
        "training_log.txt",
        "progress.png",
        "patches.png",
        "checkpoint_final.pth",
    } <= names
    assert {f"{case}.{ending}" for case in CASES for ending in ("npy", "json")} <= names


def copy_without_matcher(folders: dict, place: Path) -> dict:
    """An environment whose nnUNet_preprocessed is place, with the volumes but no matcher."""
    dataset = place / "Dataset032_Torso"
    dataset.mkdir(parents=True)
    for path in anatomy(folders).parent.iterdir():
        if path.name != anatomy(folders).name:
            (dataset / path.name).symlink_to(path)

    return {**folders, "nnUNet_preprocessed": str(place)}


def test_killed_or_not_the_weights_are_the_same(folders, embedded, tmp_path):
    other = copy_without_matcher(folders, tmp_path)
    run(other, main, *SMALL)

    ours, theirs = (
        load_checkpoint(anatomy(f) / "checkpoint_final.pth")["network_weights"]
        for f in (folders, other)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_asked_to_end_it_saves_and_goes_on_with_the_same_weights(
    folders, embedded, tmp_path, number, code
):
    other = copy_without_matcher(folders, tmp_path)
    done = stop(other, 4, number, *SMALL)
    assert done.returncode == code, done.stderr
    name = signal.Signals(number).name
    assert f"stopped by {name} after step 5, which is saved. Run the same" in done.stdout
    assert "volumes are indexed" not in done.stdout

    assert "resuming from step 5" in run(other, main, *SMALL)
    ours, theirs = (
        load_checkpoint(anatomy(f) / "checkpoint_final.pth")["network_weights"]
        for f in (folders, other)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_dry_run_says_what_would_be_done_and_touches_nothing(folders, embedded, tmp_path):
    other = copy_without_matcher(folders, tmp_path)
    output = run(other, main, *SMALL, "--dry-run")
    assert "2 training and 1 held-out volumes" in output and "starts a new training" in output
    assert "for 8 steps of" in output and not anatomy(other).exists()

    before = {path.name: path.stat().st_mtime_ns for path in anatomy(folders).iterdir()}
    output = run(folders, main, *SMALL, "--dry-run")
    assert "the matcher is trained" in output
    assert {path.name: path.stat().st_mtime_ns for path in anatomy(folders).iterdir()} == before


def test_a_second_time_only_what_is_damaged_is_done_again(folders, embedded):
    spoiled = anatomy(folders) / "lidc0314.npy"
    before = spoiled.read_bytes()
    spoiled.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert "3 of 3 volumes are indexed (1 new)" in run(folders, main, *SMALL)
    assert spoiled.read_bytes() == before

    spoiled.write_bytes(before[:1000])
    with pytest.raises(UserError, match="alice-embed"):
        open_embedding(anatomy(folders), "lidc0314")
    assert "(1 new)" in run(folders, main, *SMALL)


def test_it_draws_matches(folders, embedded):
    output = run(folders, main, *SMALL, "--show", "crlm1004", "lidc0314")
    assert output.count("score") == 6
    for name in ("matches_crlm1004_lidc0314.png", "pair_crlm1004_lidc0314.png"):
        assert (anatomy(folders) / name).stat().st_size > 20_000


PRETRAIN = ["-encoder", "vit", "-preset", "tiny", "-device", "cpu", "-np", "1"] + [
    f"--set={s}"
    for s in (
        "iterations=2",
        "batch_size=2",
        "width=24",
        "depth=3",
        "heads=2",
        "decoder_width=24",
        "decoder_depth=1",
        "decoder_heads=2",
        "head_hidden=32",
        "crop_size=16,32,32",
    )
]


def test_pretraining_on_its_matches(folders, embedded, capsys):
    words = [*PRETRAIN, "--set=log_every=1", "--set=validation_share=0"]
    output = run(folders, pretrain, *words, "--set=min_score=0")
    assert "step 2/2" in output and "rejected" in output and "(alice-embed)" not in output

    with pytest.raises(SystemExit) as left:
        run(folders, pretrain, *words, "--set=min_score=1")
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count("\n") == 1
    assert "0 of the first 32 pairs of crops reach the match score 1.0" in error
    assert str(anatomy(folders) / "coverage.png") in error

    # The earlier run is untouched, and goes on with another threshold.
    output = run(folders, pretrain, *words, "--set=min_score=0.1", "--c")
    assert "resuming from step 2" in output

    # A run is not resumed with another matcher than it was started with.
    weights = anatomy(folders) / "checkpoint_final.pth"
    before = weights.read_bytes()
    run(folders, pretrain, *words, "--set=min_score=0")
    weights.write_bytes(before + b" ")
    with pytest.raises(SystemExit):
        run(folders, pretrain, *words, "--set=min_score=0", "--c")
    assert "is not the matcher that the saved run was started with" in capsys.readouterr().err
    weights.write_bytes(before)

    for matcher in ("same", "body"):
        assert "step 2/2" in run(folders, pretrain, *words, "-matcher", matcher)

    # --c takes the run's own matcher, body: nothing is trained first.
    weights.unlink()
    output = run(folders, pretrain, *words, "--c")
    assert "resuming from step 2" in output and "(alice-embed)" not in output
    weights.write_bytes(before)


def test_a_run_that_goes_on_draws_the_pairs_of_one_that_was_never_stopped(
    folders, embedded, monkeypatch, capsys
):
    words = [*PRETRAIN, "--set=validation_share=0", "--set=probe_every=0", "--set=min_score=0.1"]
    words += ["--set=iterations=4", "--set=save_every=2", "-n", "stopped"]
    taken: list[tuple] = []
    stop_before: list[int] = []
    take_step = pretraining.Run.take_step

    def noted(run, batch):
        if run.state.step in stop_before:
            raise UserError("stopped")
        pixels = (batch.query.sum().item(), batch.key.sum().item())
        taken.append((run.state.step, *batch.query_case, *batch.key_case, *pixels))
        assert set(batch.kind) == {MATCHED}
        return take_step(run, batch)

    monkeypatch.setattr(pretraining.Run, "take_step", noted)
    run(folders, pretrain, *words)
    whole = taken.copy()
    assert [step for step, *_ in whole] == [0, 1, 2, 3] and len(set(whole)) == 4

    taken.clear()
    stop_before.append(3)
    with pytest.raises(SystemExit):
        run(folders, pretrain, *words[:-1], "stopped2")
    assert taken == whole[:3]
    taken.clear()
    stop_before.clear()

    # Another table of partners, as of an index that was made again, would give other pairs.
    table = anatomy(folders) / "partners.npz"
    before = table.read_bytes()
    table.write_bytes(before + b" ")
    with pytest.raises(SystemExit):
        run(folders, pretrain, *words[:-1], "stopped2", "--c")
    error = capsys.readouterr().err
    assert "partners.npz is not the one that the saved run was started with" in error
    table.write_bytes(before)

    run(folders, pretrain, *words[:-1], "stopped2", "--c")
    assert taken == whole[2:]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--set=lr=0.5"], "lr is 0.5 in this command but 0.001 in the saved training"),
        (["--set=speed=1"], "unknown setting"),
        (["-preset", "huge"], "invalid choice"),
        (["--show", "crlm1004", "nobody"], "no case nobody"),
        (["--set=patch_size=15,32,32"], "multiple of"),
        (["--set=crop_size=64,64,64"], "may not overlap"),
        (["--set=features=deep"], "must be one of sam, context"),
        (["-d", "78"], "no dataset with the ID 78"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(folders, embedded, words, message, monkeypatch, capsys):
    for name, value in folders.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as left:
        main(["-d", "32", *SMALL, *words])
    error = capsys.readouterr().err
    assert left.value.code == 2 and message in error and error.count("\n") == 1


def test_held_out_volumes_that_match_nobody_are_named_and_do_not_stop_the_run(folders, embedded):
    training = split_cases(sorted(CASES), 0.1, 0)[0]

    def match(point, query, key) -> Match:
        return Match((5, 30, 30), 1.0 if query.name in training else 0.3)

    with patch.object(pretraining, "make_matcher", return_value=match):
        # This matcher has no vectors that tokens could name.
        settings = ("--set=min_score=0.65", "--set=weight_an=0")
        output = run(folders, pretrain, *PRETRAIN, *settings)

    assert "do not reach the minimum match score (0.65)" in output
    assert "step 2/2" in output and "validation | l_r" in output


def test_contexts_are_learned_in_closed_form_and_resumed(folders, embedded, tmp_path):
    """The tiny preset but for its size: half the steps and the rest later, or all at once."""
    few = ["-preset", "tiny", "-device", "cpu", "-np", "1"] + [
        f"--set={s}"
        for s in (
            "iterations=4",
            "batch_size=2",
            "points=200",
            "patch_size=16,32,32",
            "crop_size=20,40,40",
            "voxel=8",
            "step=16",
            "save_every=2",
            "log_every=1",
        )
    ]

    weights = []
    for interrupted in (True, False):
        other = copy_without_matcher(folders, tmp_path / str(interrupted))
        if interrupted:
            assert stop(other, 1, signal.SIGTERM, *few).returncode == 75

        output = run(other, main, *few)
        assert ("resuming from step 2" in output) == interrupted

        assert "3 of 3 volumes are indexed" in output
        weights.append(load_checkpoint(anatomy(other) / "checkpoint_final.pth")["network_weights"])

    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    network = load_network(anatomy(other))[0]
    assert isinstance(network, ContextNet)
    assert not torch.equal(network.fine.weight, ContextNet(16).fine.weight)


def test_released_weights_become_the_finished_training(tmp_path):
    random = SamNet(**PRESETS["paper"].network).state_dict()
    weights = {released_name(name): value for name, value in random.items()}
    released = tmp_path / "SAM.pth"
    torch.save({"meta": {}, "state_dict": weights}, released)

    folder = tmp_path / "anatomy"
    config = embed_config("Dataset001_X", "paper", ["step=6"])
    weights_of_ours = read_released(released, config)
    take_released(weights_of_ours, config, {}, folder, overwrite=False)

    network, saved = load_network(folder)
    assert saved["step"] == 6
    kernel = network.state_dict()["stages.0.0.conv1.conv.weight"]
    assert torch.equal(kernel, weights["backbone.layer1.0.conv1.conv.weight"].flip(3, 4))

    with pytest.raises(UserError, match="--overwrite"):
        take_released(weights_of_ours, config, {}, folder, overwrite=False)
    take_released(weights_of_ours, config, {}, folder, overwrite=True)

    tiny = embed_config("Dataset001_X", "tiny")
    with pytest.raises(UserError, match="-preset paper"):
        read_released(released, tiny)


def test_the_config_survives_a_checkpoint():
    config = embed_config("Dataset001_X", "paper", ["iterations=100"])
    assert config.network["widths"] == (64, 128, 256, 512)
    assert (config.iterations, config.warmup_iterations) == (100, 2)
    assert embed_config_from_dict(config.as_dict()) == config

    # As users may type it, and for what earlier versions had.
    assert (
        embed_config("Dataset001_X", "paper", ["iterations=100", "warmup_iterations=-1"]) == config
    )

    with pytest.raises(ValueError, match="temperature must be positive"):
        EmbedConfig("Dataset001_X", temperature=0.0)


def test_every_field_is_described():
    for field in dataclasses.fields(EmbedConfig):
        assert f"        {field.name}: " in EmbedConfig.__doc__
