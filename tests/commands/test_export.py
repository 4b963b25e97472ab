"""alice-export: what is in the folder, that others can read it, and what it refuses."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open

from alice_nnunet.checkpoint import load_checkpoint, load_pretraining
from alice_nnunet.commands.export import main
from alice_nnunet.files import file_sha256
from alice_nnunet.sharing.exported import load_exported
from tests.helpers.exporting import write_run

# Files with the names of other libraries, for the tiny presets
PUBLISHED = {"vit": ["monai.safetensors"], "swin": [], "nnformer": ["nnformer.safetensors"]}


def refused(capsys, *arguments) -> str:
    """The one line that a refused call ends in."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    text = capsys.readouterr().err
    assert stopped.value.code == 2 and text.startswith("alice-export: ") and text.count("\n") == 1
    return text


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "c.pth")


@pytest.mark.parametrize("encoder", sorted(PUBLISHED))
def test_the_folder_gives_what_the_checkpoint_gives(tmp_path, capsys, encoder):
    checkpoint = load_pretraining(write_run(tmp_path / "c.pth", encoder))
    out = tmp_path / "shared" / "out"
    main([str(tmp_path / "c.pth"), str(out)])

    files = ["model.safetensors", "config.json", "adaptation_plan.json", "README.md"]
    assert {path.name for path in out.iterdir()} == {*files, *PUBLISHED[encoder]}
    assert not list(tmp_path.rglob("*.partial"))

    exported = load_exported(out)
    assert exported.keys() == {"network_weights", "step", "config", "data", "adaptation_plan"}
    for key in ("step", "config", "data", "adaptation_plan"):
        assert exported[key] == checkpoint[key]

    ours = exported["network_weights"]
    theirs = checkpoint["network_weights"]
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]) and tensor.dtype == theirs[name].dtype
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}

    plan = json.loads((out / "adaptation_plan.json").read_text())
    assert plan == checkpoint["adaptation_plan"]
    content = json.loads((out / "config.json").read_text())
    assert content["weights_sha256"] == file_sha256(out / "model.safetensors")
    assert content["metrics"]["l_r"] == {"step": 40, "value": 1.5}
    assert content["metrics"]["validation l_r"]["value"] == 1.625

    text = capsys.readouterr().out
    for said in (f"-d ID -weights {out}", content["weights_sha256"], "no licence is stated"):
        assert said in text


def test_the_card_is_read_by_the_hub_and_says_what_an_image_must_look_like(run, tmp_path):
    main([str(run), str(tmp_path / "out"), "-license", "cc-by-4.0"])
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.library_name == "alice-nnunet"
    assert "ct" in card.data.tags

    for said in (
        "Dataset022_FLARE22, 11 volumes",
        "RAS",
        "z, y, x",
        "3 x 3 x 3 mm",
        "clipped to -125..255 HU",
        "| depth | 4 |",
        "| steps done | step 40 of 2000 (unfinished) |",
        "| l_r | 1.5 | 40 |",
        "| validation l_r | 1.625 | 40 |",
        "@inproceedings{jiang2023alice",
        "cc-by-4.0, for the weights",
    ):
        assert said in card.text
    assert "may have collapsed" not in card.text
    assert str(tmp_path) not in card.text and str(run) not in card.text


def test_the_card_names_another_method(tmp_path):
    main([str(write_run(tmp_path / "c.pth", method="mae")), str(tmp_path / "out")])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pretrained on CT with MAE (tiny preset)" in card
    assert "without labels by MAE (He et al., CVPR 2022)\n" in card
    assert "The method is MAE (He et al., CVPR 2022)." in card and "isensee2021" in card
    assert "jiang2023alice" not in card and "l_dv" not in card


def test_the_card_warns_of_features_that_collapsed(run, tmp_path):
    def collapse(checkpoint: dict) -> None:
        checkpoint["history"]["spread S"] = [[20, 0.5], [40, 0.09]]

    main([str(spoiled(run, tmp_path, collapse)), str(tmp_path / "out")])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "(V) have an effective rank of 7.2:" in card and "| rank V | 7.25 | 40 |" in card
    assert "**spread S ended under 0.1: these features may have collapsed.**" in card


def test_an_existing_folder_and_an_exported_one_are_refused(run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert "exists already" in refused(capsys, run, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    assert "no checkpoint at" in refused(capsys, tmp_path / "out", tmp_path / "again")
    assert "no checkpoint at" in refused(capsys, tmp_path / "none.pth", tmp_path / "again")


def spoiled(run, tmp_path, change) -> str:
    checkpoint = load_checkpoint(run)
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "spoiled.pth")
    return tmp_path / "spoiled.pth"


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda c: c["adaptation_plan"].pop("key_to_lpe"),
            "adaptation_plan.key_to_lpe is missing",
        ),
        (
            lambda c: c["adaptation_plan"].update(key_to_stem="stem"),
            "key_to_stem is 'stem', and no tensor",
        ),
        (lambda c: c["network_weights"].pop("norm.bias"), "norm.bias"),
        (lambda c: c.update(adaptation_plan=None), "None instead of a dictionary"),
        (lambda c: c["config"]["encoder_arguments"].update(width=96), "not those of the vit"),
    ],
)
def test_what_cannot_be_described_is_refused_and_leaves_nothing(
    run, tmp_path, capsys, change, said
):
    assert said in refused(capsys, spoiled(run, tmp_path, change), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["spoiled.pth"]


def test_early_checkpoints_with_arguments_in_the_plan(run, tmp_path, capsys):
    def early(checkpoint: dict) -> None:
        architecture = checkpoint["adaptation_plan"]["architecture_plans"]
        architecture["arch_kwargs"] = checkpoint["config"]["encoder_arguments"]

    main([str(spoiled(run, tmp_path, early)), str(tmp_path / "out")])
    assert "exported as null" in capsys.readouterr().out

    plan = json.loads((tmp_path / "out" / "adaptation_plan.json").read_text())
    assert plan["architecture_plans"]["arch_kwargs"] is None
