"""What a command can know before it reads a scan, it says before it reads one.

Each row is a command, one thing that is wrong, and what it says. Voxels are read in one place of
nibabel, which counts here; headers may be read, as free disk depends on them.
"""

import importlib
import runpy
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nibabel.arrayproxy import ArrayProxy

from tests.helpers.exporting import write_run
from tests.helpers.finetuning import write_checkpoint, write_dataset

COMMANDS = runpy.run_path(str(Path(__file__).parent.parent / "setup.py"))["COMMANDS"]
Disk = namedtuple("Disk", "total used free")
TINY = ("-preset", "tiny", "-device", "cpu")


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The scans whose voxels were read."""
    read: list[str] = []
    original = ArrayProxy._get_unscaled

    def counted(proxy, slicer):
        read.append(str(proxy.file_like))
        return original(proxy, slicer)

    monkeypatch.setattr(ArrayProxy, "_get_unscaled", counted)
    return read


@pytest.fixture
def place(nnunet_folders, raw_dataset, real_ct, monkeypatch) -> Path:
    """An unlabeled dataset 22, a labeled dataset 7, weights for it, and no GPU."""
    raw_dataset({"a": real_ct, "b": real_ct})
    write_dataset(nnunet_folders / "raw", real_ct, cases=2)
    write_checkpoint(nnunet_folders / "c.pth")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("nnUNet_wandb_enabled", raising=False)
    monkeypatch.chdir(nnunet_folders)
    return nnunet_folders


def refused(command: str, words: tuple[str, ...], capsys) -> str:
    main = importlib.import_module(COMMANDS[command]).main
    with pytest.raises(SystemExit) as end:
        main([*words])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1, error
    return error


WORDS = {
    "alice-check": ("-d", "22"),
    "alice-preprocess": ("-d", "22", "-np", "1"),
    "alice-embed": ("-d", "22", "-np", "1", *TINY),
    "alice-pretrain": ("-d", "22", "-np", "1", "-encoder", "vit", *TINY),
    "alice-plan": ("-d", "7", "-np", "1", "-weights", "c.pth"),
}
VARIABLES = {
    "alice-check": ("raw", "preprocessed"),
    "alice-preprocess": ("raw", "preprocessed"),
    "alice-embed": ("raw", "preprocessed"),
    "alice-pretrain": ("raw", "preprocessed", "results"),
    "alice-plan": ("raw", "preprocessed"),
}


@pytest.mark.parametrize(
    "command, name", [(command, name) for command in VARIABLES for name in VARIABLES[command]]
)
def test_variables(place, reads, monkeypatch, capsys, command, name):
    monkeypatch.delenv(f"nnUNet_{name}")
    assert f"nnUNet_{name} is not set" in refused(command, WORDS[command], capsys)
    assert reads == []


@pytest.mark.parametrize("command", VARIABLES)
def test_a_dataset_that_is_not_there(place, reads, capsys, command):
    for given, said in (("99", "no dataset with the ID 99"), ("Dataset099_X", "Dataset099_X in")):
        words = ("-d", given, *WORDS[command][2:])
        assert said in refused(command, words, capsys)
    assert reads == []


@pytest.mark.parametrize(
    "command, folder",
    [
        ("alice-preprocess", "preprocessed"),
        ("alice-embed", "preprocessed"),
        ("alice-pretrain", "preprocessed"),
        ("alice-pretrain", "results"),
        ("alice-plan", "preprocessed"),
        ("alice-check", "preprocessed"),
    ],
)
def test_a_folder_that_cannot_be_written_to(place, reads, monkeypatch, capsys, command, folder):
    monkeypatch.setenv(f"nnUNet_{folder}", str(place / "c.pth"))  # a file
    assert f"nnUNet_{folder}" in refused(command, WORDS[command], capsys)
    assert reads == []


@pytest.mark.parametrize("command", ["alice-preprocess", "alice-embed", "alice-pretrain"])
def test_a_full_disk(place, reads, monkeypatch, capsys, command):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(10**9, 10**9, 0))
    assert "has 0 GB free" in refused(command, WORDS[command], capsys)
    assert reads == []


ONE_LINE: list[tuple[str, tuple[str, ...], str]] = [
    # The device
    ("alice-embed", ("-preset", "tiny", "-device", "cuda"), "torch finds no CUDA device here"),
    ("alice-pretrain", ("-preset", "tiny", "-device", "cuda"), "torch finds no CUDA device here"),
    ("alice-embed", ("-preset", "paper"), "preset paper is made for a GPU"),
    ("alice-pretrain", ("-preset", "paper"), "preset paper is made for a GPU"),
    # The matcher
    (
        "alice-embed",
        ("-preset", "paper", "-device", "cpu", "-released", "none.pth"),
        "no checkpoint at none.pth",
    ),
    ("alice-embed", (*TINY, "-released", "c.pth"), "need the network of -preset paper"),
    ("alice-pretrain", (*TINY, "-matcher", "same", "--set", "weight_an=1"), "weight_an needs"),
    # The encoder and its probe
    ("alice-pretrain", (*TINY, "-encoder", "vit", "--set", "depth=2"), "a depth of at least 3"),
    ("alice-pretrain", (*TINY, "-encoder", "vit", "--set", "heads=7"), "heads"),
    ("alice-pretrain", (*TINY, "--set", "probe_labels=nowhere"), "probe_labels needs two labeled"),
]


@pytest.mark.parametrize("command, words, said", ONE_LINE)
def test_device_matcher_and_encoder(place, reads, capsys, command, words, said):
    assert said in refused(command, ("-d", "22", "-np", "1", *words), capsys)
    assert reads == []
    assert not list((place / "preprocessed").iterdir())


def test_a_single_person_cannot_be_paired(place, reads, capsys):
    (place / "raw" / "Dataset022_Test" / "imagesTr" / "b_0000.nii.gz").unlink()
    for command in ("alice-embed", "alice-pretrain"):
        error = refused(command, WORDS[command], capsys)
        assert "at least 2 volumes of different people, found 1" in error
    assert reads == []


def plans_of_others(place: Path) -> None:
    folder = place / "preprocessed" / "Dataset007_Body"
    folder.mkdir()
    (folder / "AlicePlans.json").write_text("{}")


@pytest.mark.parametrize(
    "words, change, said",
    [
        (("-weights", "none.pth"), None, "none.pth"),
        (("-weights", "c.pth", "-patch", "30", "64", "64"), None, "the next one is [32"),
        (("-weights", "c.pth", "--set", "optimizer=none"), None, "optimizer"),
        (("-weights", "c.pth"), plans_of_others, "exists and was made from"),
    ],
)
def test_planning(place, reads, capsys, words, change: Callable | None, said):
    if change:
        change(place)
    assert said in refused("alice-plan", ("-d", "7", "-np", "1", *words), capsys)
    assert reads == []


@pytest.mark.parametrize(
    "words, said",
    [
        (("nowhere", "labels"), "nowhere"),
        (("raw", "raw", "-organs", "none.json"), "none.json"),
        (("raw", "raw", "-dataset_json", "none.json"), "none.json"),
        (("raw", "raw", "-against", "raw"), "PRED itself"),
        (("labels", "labels", "-o", "c.pth/x"), "-o: cannot create the folder"),
    ],
)
def test_evaluation(place, reads, capsys, words, said):
    labels = place / "raw" / "Dataset007_Body" / "labelsTr"
    (place / "labels").symlink_to(labels)
    assert said in refused("alice-evaluate", words, capsys)
    assert reads == []


@pytest.mark.parametrize("command", ["alice-export", "alice-submit"])
def test_outputs_that_exist_are_refused_before_weights_are_read(
    place, monkeypatch, capsys, command
):
    def load(*words, **options):
        raise AssertionError("weights were read")

    model = place / "model"
    (model / "fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        (model / name).write_text('{"file_ending": ".nii.gz"}')
    write_run(model / "fold_0" / "checkpoint_final.pth")
    given = model if command == "alice-submit" else model / "fold_0"

    monkeypatch.setattr(torch, "load", load)
    assert "exists already" in refused(command, (str(given), str(place / "raw")), capsys)


def test_the_demo(place, monkeypatch, capsys):
    assert "exists already" in refused("alice-demo", ("-o", "raw"), capsys)

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(10**9, 10**9, 0))
    assert "has 0 GB free" in refused("alice-demo", ("-o", "new"), capsys)
    assert not (place / "new").exists()
