"""Which alice block a training follows."""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from alice_nnunet.errors import UserError
from alice_nnunet.files import file_sha256
from alice_nnunet.finetuning.block import AliceBlock, block_of_plans
from alice_nnunet.finetuning.checks import (
    block_from_variable,
    check_same_run,
    check_variable,
    find_block,
    saved_block,
    starting_weights,
)
from alice_nnunet.sharing.exported import write_exported
from tests.helpers.finetuning import pretraining_checkpoint, stock_plans, write_checkpoint


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """results/ and cases/ (one LPS case), and a checkpoint that alice_weights names."""
    for name in ("results", "cases"):
        (tmp_path / name).mkdir()
    (tmp_path / "cases" / "a.pkl").write_bytes(
        pickle.dumps({"nibabel_stuff": {"original_affine": np.diag([-1.0, -1, 1, 1])}})
    )
    monkeypatch.setenv("alice_weights", str(write_checkpoint(tmp_path / "c.pth")))
    return tmp_path


def find(folders, plans: dict) -> AliceBlock:
    return find_block(
        plans, plans["configurations"]["3d_fullres"], folders / "results", folders / "cases"
    )[0]


def from_variable(folders) -> AliceBlock:
    plans = stock_plans()
    return block_from_variable(plans, plans["configurations"]["3d_fullres"], folders / "cases")[0]


def save(folders, block: AliceBlock) -> None:
    content = {**stock_plans(), "alice": block.as_entries()}
    (folders / "results" / "plans.json").write_text(json.dumps(content))


def test_stock_plans_take_the_variables_checkpoint(folders):
    block = find(folders, stock_plans())
    assert block.origin.path == str(folders / "c.pth")
    assert block.origin.sha256 == file_sha256(folders / "c.pth")
    assert block.input["flip_axes"] == [1, 2] and block.recipe.epochs == 1000

    entries = block.as_entries()
    assert json.loads(json.dumps(entries)) == entries


def test_plans_of_the_reorienting_reader_need_no_flips(folders):
    block = find(folders, stock_plans(image_reader_writer="NibabelIOWithReorient"))
    assert block.input["flip_axes"] == []


def matched(folders) -> dict:
    """Plans with a block of their own."""
    plans = stock_plans(image_reader_writer="NibabelIOWithReorient")
    configuration = plans["configurations"]["3d_fullres"]
    block, _ = block_from_variable(plans, configuration, folders / "cases")
    return {**plans, "alice": block.as_entries()}


def test_the_plans_own_block_comes_first_then_the_saved_one(folders, monkeypatch):
    saved = from_variable(folders)
    save(folders, saved)
    write_checkpoint(folders / "other.pth", seed=1)
    monkeypatch.setenv("alice_weights", str(folders / "other.pth"))
    own = matched(folders)
    assert find(folders, own) == block_of_plans(own) != saved
    monkeypatch.delenv("alice_weights")
    assert find(folders, stock_plans()) == saved


def test_the_variable_beside_plans_with_a_block_is_reported_as_unused(folders):
    plans = matched(folders)
    _, lines = find_block(
        plans, plans["configurations"]["3d_fullres"], folders / "results", folders / "cases"
    )
    assert any("alice_weights is not used" in line for line in lines)


def test_without_a_block_the_error_names_both_routes(folders, monkeypatch):
    monkeypatch.delenv("alice_weights")
    with pytest.raises(UserError, match=r"alice-plan -d.*alice_weights=CKPT"):
        find(folders, stock_plans())
    with pytest.raises(UserError, match="no alice block"):
        block_of_plans(stock_plans())


@pytest.mark.parametrize(
    "content, said", [(None, "no checkpoint"), (b"text", "not a readable checkpoint")]
)
def test_bad_weights_in_the_variable(folders, content, said):
    (folders / "c.pth").unlink()
    if content:
        (folders / "c.pth").write_bytes(content)
    with pytest.raises(UserError, match=said):
        find(folders, stock_plans())


def test_plans_changed_by_hand_are_refused(folders):
    plans = matched(folders)
    plans["foreground_intensity_properties_per_channel"]["0"]["mean"] = 0.0
    with pytest.raises(UserError, match=r"intensity statistics.*plans were changed since"):
        find(folders, plans)
    with pytest.raises(UserError, match=r"SimpleITKIO.*plans were changed since"):
        find(folders, {**matched(folders), "image_reader_writer": "SimpleITKIO"})


def test_saved_plans_that_another_fold_is_writing_are_waited_for(folders, monkeypatch):
    block = from_variable(folders)
    path = folders / "results" / "plans.json"
    sleep = "alice_nnunet.finetuning.checks.time.sleep"

    path.write_text('{"alice": ')
    monkeypatch.setattr(sleep, lambda seconds: save(folders, block))
    assert saved_block(folders / "results") == block

    path.write_text('{"alice": ')
    monkeypatch.setattr(sleep, lambda seconds: None)
    with pytest.raises(UserError, match="not valid JSON"):
        saved_block(folders / "results")


def test_weights_gone_or_changed(folders):
    block = from_variable(folders)
    assert starting_weights(block).name == "vit"
    write_checkpoint(folders / "c.pth", seed=1)
    with pytest.raises(UserError, match=r"not the file that was planned with.*sha256"):
        starting_weights(block)
    (folders / "c.pth").unlink()
    with pytest.raises(UserError, match=f"{folders / 'c.pth'}, and that file is gone"):
        starting_weights(block)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"encoder": "swin"}, "encoder swin instead of vit"),
        ({"orientation": "LPS"}, "orientation LPS instead of RAS"),
        (
            {"channels": [{"name": "CT", "scheme": "CTNormalization", "window": [-1000.0, 400.0]}]},
            "-1000.0, 400.0.* instead of .*-125.0, 255.0",
        ),
        ({}, "other weights of the same encoder and data"),
    ],
)
def test_other_weights_than_the_plans_own(folders, monkeypatch, change, said):
    """In the variable beside plans that name theirs; all but the last also by hand in the plans."""
    plans = matched(folders)
    block = block_of_plans(plans)
    check_variable(block, plans)

    other = str(write_checkpoint(folders / "other.pth", seed=1, **change))
    monkeypatch.setenv("alice_weights", other)
    with pytest.raises(
        UserError,
        match=f"{said}.*unset alice_weights.*alice-plan -d 7 -weights {other} -n OTHERNAME",
    ):
        check_variable(block, plans)

    if change:
        by_hand = replace(block.origin, path=other, sha256=file_sha256(other))
        with pytest.raises(
            UserError, match=f"another pretraining.*{said}.*plan again with alice-plan"
        ):
            starting_weights(replace(block, origin=by_hand))

    monkeypatch.delenv("alice_weights")
    check_variable(block, plans)


def test_an_exported_folder_as_the_variables_weights(folders, monkeypatch):
    folder = folders / "shared"
    for seed in (0, 1):
        (folders / str(seed)).mkdir()
        write_exported(folders / str(seed), pretraining_checkpoint(seed), {})
    shutil.copytree(folders / "0", folder)
    monkeypatch.setenv("alice_weights", str(folder))
    block = from_variable(folders)
    assert block.origin.path == str(folder)
    assert block.origin.sha256 == file_sha256(folder / "model.safetensors")

    weights = starting_weights(block).weights
    expected = pretraining_checkpoint(0)["network_weights"]
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)

    shutil.rmtree(folder)
    shutil.copytree(folders / "1", folder)
    with pytest.raises(UserError, match=r"not the file that was planned with.*sha256"):
        starting_weights(block)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=f"{folder}, and that file is gone"):
        starting_weights(block)


def test_a_second_training_of_other_weights_or_recipe_is_refused(folders):
    block = from_variable(folders)
    check_same_run(block, folders / "results", going_on=False)
    save(folders, block)
    assert saved_block(folders / "results") == block
    check_same_run(block, folders / "results", going_on=False)

    longer = replace(block, recipe=replace(block.recipe, epochs=2000))
    check_same_run(longer, folders / "results", going_on=True)

    foreign = replace(block, origin=replace(block.origin, sha256="0"))
    for other, going_on in ((foreign, True), (foreign, False), (longer, False)):
        with pytest.raises(UserError, match=r"-n OTHERNAME.*remove or rename"):
            check_same_run(other, folders / "results", going_on)

    moved = replace(block, origin=replace(block.origin, path="/elsewhere/c.pth"))
    check_same_run(moved, folders / "results", going_on=False)
