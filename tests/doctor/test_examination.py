"""alice-check without -d, on folders that an earlier version filled with its real commands."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alice_nnunet.commands.check import main
from alice_nnunet.doctor import machine
from alice_nnunet.environment import own_trainers
from alice_nnunet.files import locked

MADE = Path(__file__).parent.parent / "made_before"
UNLABELED = "Dataset022_Before"
LABELED = "Dataset007_Before"
RUN = f"results/{UNLABELED}/AlicePretrain__AlicePretrainPlans__3d_fullres/vit"
VOLUMES = f"preprocessed/{UNLABELED}/AlicePretrainPlans_3d_fullres"
ANATOMY = f"preprocessed/{UNLABELED}/AlicePretrainPlans_anatomy"
PLANS = f"preprocessed/{UNLABELED}/AlicePretrainPlans.json"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A copy of the folders, with nnU-Net's variables, in which nothing is wrong."""
    for name in ("raw", "preprocessed", "results"):
        shutil.copytree(MADE / name, tmp_path / name)
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_extTrainer", own_trainers())
    monkeypatch.setattr(machine, "LITTLE_GB", 0.0)  # whatever disk this is

    images = tmp_path / "raw" / UNLABELED / "imagesTr"
    images.mkdir()
    for volume in (tmp_path / VOLUMES).glob("*.b2nd"):
        (images / f"{volume.stem}_0000.nii.gz").touch()  # no command here opens an image
    return tmp_path


def examined(capsys) -> dict:
    main(["--json"])
    return json.loads(capsys.readouterr().out)


def test_what_is_there_is_told(place, capsys):
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    found = examined(capsys)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before

    assert found["problems"] == []
    (note,) = found["notes"]
    assert "vit stopped at step 3 of 6" in note
    assert f"alice-pretrain -d {UNLABELED} -encoder vit -preset tiny --c goes on" in note

    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert [(f["path"], f["exists"], f["writable"]) for f in found["folders"]] == [
        (str(place / name), True, True) for name in ("raw", "preprocessed", "results")
    ]

    labeled, unlabeled = found["datasets"]
    assert labeled["name"] == LABELED
    assert labeled["raw"] == {"cases": 5, "rejected": 0, "labeled": True}
    assert labeled["trainings"] == [
        {"name": "AliceTrainer__AlicePlans__3d_fullres", "finished": ["0"], "unfinished": []}
    ]

    assert unlabeled["raw"] == {"cases": 3, "rejected": 0, "labeled": False}
    volumes = unlabeled["volumes"]
    assert volumes["spacing"] == [6, 6, 6] and volumes["presets"] == []
    assert (volumes["cases"], volumes["failed"], volumes["complete"]) == (3, 0, True)

    index = unlabeled["index"]
    assert (index["preset"], index["finished"], index["cases"]) == ("tiny", True, 3)
    (run,) = unlabeled["runs"]
    assert (run["name"], run["step"], run["steps"], run["finished"]) == ("vit", 3, 6, False)
    assert run["embedding_sha256"] == index["sha256"]  # it fits its matcher
    assert run["case_list_sha256"] == volumes["case_list_sha256"]


def test_the_text_says_the_same(place, capsys):
    main([])
    text = capsys.readouterr().out
    for part in (
        f"{place / 'raw'}: writable",
        "5 scans, labeled",
        "3 of a spacing of your own, 6 x 6 x 6 mm",
        "matcher of preset tiny, 6 x 6 x 6 mm, trained; 3 of 3 volumes indexed",
        "preset tiny, 6 x 6 x 6 mm, step 3 of 6",
        "fold 0 finished",
        "to know (1)",
        "no problems",
    ):
        assert part in text


def change_json(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def set_spacing(place: Path) -> None:
    change_json(
        place / PLANS, lambda plans: plans["configurations"]["3d_fullres"].update(spacing=[3, 3, 3])
    )


def write_plans_without_weights(place: Path) -> None:
    block = {"encoder": "vit", "weights": "/nowhere/c.pth"}
    plans = place / "preprocessed" / LABELED / "AlicePlans.json"
    plans.write_text(json.dumps({"alice": block}))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no raw folder": (lambda p: shutil.rmtree(p / "raw"), "nnUNet_raw="),
    "a damaged run": (lambda p: os.truncate(p / RUN / "checkpoint_latest.pth", 999), "vit/checkpo"),
    "an empty run": (lambda p: os.truncate(p / RUN / "checkpoint_latest.pth", 0), "vit/checkpoint"),
    "a damaged matcher": (
        lambda p: os.truncate(p / ANATOMY / "checkpoint_final.pth", 999),
        "AlicePretrainPlans_anatomy/checkpoint_final.pth is not a readable checkpoint",
    ),
    "damaged plans": (lambda p: (p / PLANS).write_text("{"), "AlicePretrainPlans.json"),
    "plans of nothing": (lambda p: (p / PLANS).write_text("{}"), "KeyError: 'configurations'"),
    "a damaged report": (
        lambda p: (p / PLANS.replace(".json", "_report.json")).write_text("[]"),
        "the volumes beside it cannot be read (TypeError",
    ),
    "no dataset.json": (lambda p: (p / "raw" / LABELED / "dataset.json").unlink(), "is missing"),
    "another spacing of volumes": (
        set_spacing,
        f"6 x 6 x 6 mm (preset tiny), and now they have 3 x 3 x 3 mm: alice-embed -d {UNLABELED} "
        "-preset tiny --overwrite",
    ),
    "other volumes than the run's": (
        lambda p: next((p / VOLUMES).glob("*.pkl")).unlink(),
        "cannot go on: it began with other volumes",
    ),
    "another matcher than the run's": (
        lambda p: shutil.rmtree(p / ANATOMY),
        "cannot go on: it began with another matcher",
    ),
    "weights that went away": (write_plans_without_weights, "no longer at /nowhere/c.pth"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_item_is_named_and_costs_no_other(place, capsys, what):
    change, said = BROKEN[what]
    change(place)
    found = examined(capsys)

    assert [problem for problem in found["problems"] if said in problem], found["problems"]
    assert [dataset["name"] for dataset in found["datasets"]] == [LABELED, UNLABELED]
    assert found["datasets"][0]["trainings"]  # the last thing that is looked at
    main([])  # as text, too
    assert "PROBLEMS" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda p: (p / PLANS.replace(".json", "_report.json")).unlink(), "alice-preprocess -d"),
        (lambda p: next((p / ANATOMY).glob("*.npy")).unlink(), "2 of 3 volumes are indexed"),
        (
            lambda p: (p / "raw" / UNLABELED / "imagesTr" / "new_0000.nii.gz").touch(),
            "not preprocessed: 1. alice-preprocess -d",
        ),
    ],
)
def test_what_waits_to_go_on_is_no_problem(place, capsys, change, said):
    change(place)
    found = examined(capsys)
    assert found["problems"] == [] and [note for note in found["notes"] if said in note]


def test_variables_that_are_not_set(place, capsys, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"nnUNet_{name}")
    monkeypatch.delenv("nnUNet_extTrainer")

    found = examined(capsys)
    assert len(found["problems"]) == 3 and found["datasets"] == []
    assert "export nnUNet_results=FOLDER" in found["problems"][2]
    assert 'eval "$(alice-env)"' in found["notes"][0]


def test_a_folder_that_cannot_be_written_to_and_a_full_disk(place, capsys, monkeypatch):
    monkeypatch.setattr(machine, "LITTLE_GB", 1e9)
    monkeypatch.setattr(os, "access", lambda path, mode: path != place / "results")
    found = examined(capsys)
    assert f"nnUNet_results={place / 'results'} cannot be written to" in found["problems"][1]
    assert "GB free: free some space" in found["problems"][0]


def test_packages_that_are_missing_or_too_old(place, capsys, monkeypatch):
    real = machine.version

    def version(name: str) -> str:
        if name == "monai":
            raise machine.PackageNotFoundError(name)
        return "2.1" if name == "torch" else real(name)

    monkeypatch.setattr(machine, "version", version)
    problems = examined(capsys)["problems"]
    assert len(problems) == 2
    assert 'torch is 2.1, needed is >=2.8: pip install "torch>=2.8"' in problems[0]
    assert "monai is missing" in problems[1]


def test_a_torch_that_cannot_be_imported_costs_the_device_alone(place, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = examined(capsys)
    assert found["device"] is None and len(found["problems"]) == 1
    assert found["problems"][0].startswith("the device (torch) cannot be read (ModuleNotFound")
    assert len(found["datasets"]) == 2


@pytest.mark.parametrize("cuda, reason", [(None, "a build for CPUs"), ("12.6", "CUDA 12.6 and")])
def test_a_machine_without_a_gpu(monkeypatch, cuda, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    device = machine.look_at_device()
    assert device.name == "cpu" and reason in device.meaning and "Preset tiny" in device.meaning


def test_a_machine_with_gpus(monkeypatch):
    class Gpu:
        name, total_memory, major = "Some GPU", 80_000_000_000, 9

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Gpu)
    device = machine.look_at_device()
    assert device.gpus == ["Some GPU, 80 GB"] * 2 and "bf16" in device.meaning


def test_who_works_on_what(place, capsys):
    with (
        locked(place / RUN / "lock"),
        locked(place / ANATOMY / "lock"),
        locked(place / PLANS.replace(".json", ".lock")),
    ):
        found = examined(capsys)
        main([])
    here = f"process {os.getpid()} on "
    unlabeled = found["datasets"][1]
    assert unlabeled["runs"][0]["at_work"].startswith(here)
    assert unlabeled["index"]["at_work"].startswith(here)
    assert unlabeled["volumes"]["at_work"].startswith(here)
    assert capsys.readouterr().out.count(f"; at work: {here}") == 3
    assert found["notes"] == []  # a run at work need not be gone on with

    (place / RUN / "lock").write_text("process 999999999 on somewhere, since then")
    old = (place / RUN / "lock").stat().st_mtime - 3600
    os.utime(place / RUN / "lock", (old, old))
    assert examined(capsys)["datasets"][1]["runs"][0]["at_work"] == ""


@pytest.mark.parametrize(
    "words, said", [(["--accept", "fragment"], "add -d"), (["-d", "7", "--json"], "without -d")]
)
def test_options_of_the_other_use_are_refused(capsys, words, said):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and said in capsys.readouterr().err
