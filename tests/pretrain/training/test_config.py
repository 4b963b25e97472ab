import json

import pytest

from alice_nnunet.errors import UserError
from alice_nnunet.model.presets import CROPS, PRESETS
from alice_nnunet.pretrain.training.config import (
    PretrainConfig,
    config_from_dict,
    make_config,
    read_settings,
)


def config(*assignments, preset="paper", file=None) -> PretrainConfig:
    return make_config(
        "Dataset001_X", "vit", preset, 1, read_settings(preset, "vit", file, list(assignments))[0]
    )


def test_defaults_are_the_papers_but_for_what_the_readme_lists():
    c = config()
    assert (c.iterations, c.batch_size, c.lr, c.betas, c.warmup_iterations) == (
        100_000,
        8,
        5e-5,
        (0.9, 0.95),
        2800,
    )
    assert c.encoder_arguments == {
        "in_channels": 1,
        "crop_size": (64, 192, 192),
        "width": 768,
        "depth": 12,
        "heads": 12,
    }
    assert c.method.mask_ratio == 0.75 and (
        c.method.weight_r,
        c.method.weight_dv,
        c.method.weight_st,
    ) == (10, 1, 1)


def test_set_reaches_every_group():
    c = config(
        "iterations=200",
        "batch_size=2",
        "mask_ratio=0.5",
        "depth=3",
        "crop_size=32,64,64",
        "predictor=false",
        "similarity=infonce",
        "lr=1",
        "betas=[0.8, 0.9]",
        preset="tiny",
    )
    assert (c.iterations, c.batch_size, c.method.mask_ratio, c.encoder_arguments["depth"]) == (
        200,
        2,
        0.5,
        3,
    )
    assert c.encoder_arguments["crop_size"] == (32, 64, 64) and c.method.predictor is False
    assert c.method.similarity == "infonce" and c.lr == 1.0 and c.betas == (0.8, 0.9)
    assert c.warmup_iterations == 6  # follows iterations


def test_a_file_and_a_saved_config_are_settings_too(tmp_path):
    (tmp_path / "flat.json").write_text('{"iterations": 300, "mask_ratio": 0.6}')
    c = config("iterations=400", file=tmp_path / "flat.json")
    assert c.iterations == 400 and c.method.mask_ratio == 0.6
    (tmp_path / "saved.json").write_text(json.dumps(c.as_dict()))
    assert config(file=tmp_path / "saved.json") == c


def test_it_survives_a_checkpoint():
    c = config("crop_size=32,64,64", preset="tiny")
    assert config_from_dict(json.loads(json.dumps(c.as_dict()))) == c


@pytest.mark.parametrize("encoder", ["swin", "nnformer"])
@pytest.mark.parametrize("preset", sorted(CROPS))
def test_windows_are_settings_and_survive_a_checkpoint(encoder, preset):
    settings, given = read_settings(
        preset,
        encoder,
        None,
        [f"windows={json.dumps(PRESETS[encoder][preset].encoder['windows'])}"],
    )
    c = make_config("Dataset001_X", encoder, preset, 1, settings)
    assert (
        given["windows"]
        == c.encoder_arguments["windows"]
        == PRESETS[encoder][preset].encoder["windows"]
        and c.method.decoder_depth == 1
    )
    assert config_from_dict(json.loads(json.dumps(c.as_dict()))) == c
    with pytest.raises(UserError, match="windows must be"):
        read_settings(preset, encoder, None, ["windows=7"])


@pytest.mark.parametrize(
    "assignment, message",
    [
        ("iteration=3", "unknown setting 'iteration'"),
        ("iterations", "name=value"),
        ("iterations=many", "must be int"),
        ("iterations=1.5", "must be int"),
        ("iterations=0", "must be positive"),
        ("predictor=1", "must be bool"),
        ("mask_ratio=1", "mask_ratio must be in"),
        ("crop_size=30,64,64", "multiple of"),
        ("crop_size=64", "numbers such as"),
        ("similarity=l1", "must be one of"),
        ("warmup_iterations=2000", "warmup_iterations must be"),
        ("lr=-1", "must be positive"),
        ("precision=fp8", "must be one of"),
        ("matcher=eye", "must be one of"),
        ("ema=1.5", "ema must be in"),
        ("accumulate=3", "accumulate must divide batch_size"),
        ("max_nonfinite=0", "must be positive"),
    ],
)
def test_wrong_settings_are_refused(assignment, message):
    with pytest.raises(UserError, match=message):
        config(assignment, preset="tiny")


def test_an_unreadable_file_is_refused(tmp_path):
    (tmp_path / "c.json").write_text("{")
    for file in (tmp_path / "c.json", tmp_path / "none.json"):
        with pytest.raises(UserError, match="not a readable JSON"):
            config(file=file)
