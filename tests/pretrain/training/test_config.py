import dataclasses
import json
import subprocess
import sys

import pytest

from alice_nnunet.errors import UserError
from alice_nnunet.model.encoders.registry import ENCODERS
from alice_nnunet.model.presets import CROPS, PRESETS
from alice_nnunet.model.pretraining.registry import METHODS, settings_class
from alice_nnunet.pretrain.training.config import (
    PretrainConfig,
    config_from_dict,
    known_settings,
    make_config,
    rate,
    read_settings,
)


def config(*assignments, preset="paper", file=None) -> PretrainConfig:
    return make_config("Dataset001_X", read_settings("vit", preset, assignments, file))


def through_json(config: PretrainConfig) -> PretrainConfig:
    return config_from_dict(json.loads(json.dumps(config.as_dict())))


def test_defaults_are_the_papers_but_for_what_the_docs_list():
    c = config()

    assert (c.iterations, c.batch_size, c.lr) == (100_000, 8, 5e-5)
    assert (c.betas, c.warmup_iterations) == ((0.9, 0.95), 2800)
    assert c.encoder_arguments == {
        "in_channels": 1,
        "crop_size": (64, 192, 192),
        "width": 768,
        "depth": 12,
        "heads": 12,
        "token": (16, 16, 16),
    }

    assert c.method.mask_ratio == 0.75
    method = c.method
    assert (method.weight_r, method.weight_dv, method.weight_st, method.weight_an) == (10, 1, 0, 2)
    assert (method.dv_by, method.target_flips, method.temperature) == ("place", False, 0.1)


def test_every_encoder_has_every_preset_and_each_is_complete():
    assert PRESETS.keys() == ENCODERS.keys()

    for encoder, presets in PRESETS.items():
        assert presets.keys() == CROPS.keys()

        for preset, chosen in presets.items():
            known = known_settings(encoder, preset)
            of_methods = {
                field.name for name in METHODS for field in dataclasses.fields(settings_class(name))
            }
            assert chosen.method.keys() <= of_methods
            assert chosen.run.keys() <= known["run"].keys()

            made = make_config("Dataset001_X", read_settings(encoder, preset))
            assert through_json(made) == made
            assert made.encoder_arguments["crop_size"] == chosen.crops.size


@pytest.mark.parametrize("encoder", sorted(PRESETS))
def test_no_setting_belongs_to_two_groups(encoder):
    groups = known_settings(encoder, "paper")
    names = [name for group in groups.values() for name in group]
    assert len(names) == len(set(names))


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

    assert (c.iterations, c.batch_size, c.lr, c.betas) == (200, 2, 1.0, (0.8, 0.9))
    assert c.warmup_iterations == 6  # follows iterations
    assert (c.encoder_arguments["depth"], c.encoder_arguments["crop_size"]) == (3, (32, 64, 64))
    assert (c.method.mask_ratio, c.method.similarity) == (0.5, "infonce")
    assert c.method.predictor is False


def test_a_file_and_a_saved_config_are_settings_too(tmp_path):
    (tmp_path / "flat.json").write_text('{"iterations": 300, "mask_ratio": 0.6}')
    c = config("iterations=400", file=tmp_path / "flat.json")
    assert c.iterations == 400 and c.method.mask_ratio == 0.6

    (tmp_path / "saved.json").write_text(json.dumps(c.as_dict()))
    assert config(file=tmp_path / "saved.json") == c


def test_what_is_not_set_is_none_however_it_is_written(tmp_path):
    default = config()
    assert (default.workers, default.max_return, default.warmup_iterations) == (None, None, 2800)

    numbers = ("workers=-1", "max_return=0", "warmup_iterations=-1")
    words = ("workers=null", "max_return=None", "warmup_iterations=null")
    assert config(*numbers) == config(*words) == default

    # As earlier versions saved it, in config.json and in checkpoints.
    earlier = {**default.as_dict(), "workers": -1, "max_return": 0.0}
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))
    assert config(file=tmp_path / "earlier.json") == config_from_dict(earlier) == default

    assert config("workers=0").workers == 0 and config("max_return=12").max_return == 12.0


def test_it_survives_a_checkpoint():
    c = config("crop_size=32,64,64", "workers=2", "max_return=9.5", preset="tiny")
    assert through_json(c) == c


@pytest.mark.parametrize("encoder", ["swin", "nnformer"])
@pytest.mark.parametrize("preset", sorted(CROPS))
def test_windows_are_settings_and_survive_a_checkpoint(encoder, preset):
    windows = PRESETS[encoder][preset].encoder["windows"]
    settings = read_settings(encoder, preset, [f"windows={json.dumps(windows)}"])
    c = make_config("Dataset001_X", settings)

    assert settings.given == {"windows": windows}
    assert c.encoder_arguments["windows"] == windows and c.method.decoder_depth == 1
    assert through_json(c) == c

    with pytest.raises(UserError, match="windows must be"):
        read_settings(encoder, preset, ["windows=7"])


@pytest.mark.parametrize(
    "assignment, message",
    [
        ("iteration=3", "unknown setting 'iteration'"),
        ("iterations", "name=value"),
        ("iterations=many", "must be int"),
        ("iterations=1.5", "must be int"),
        ("iterations=null", "must be int"),
        ("iterations=0", "iterations must be positive, got 0"),
        ("predictor=1", "must be bool"),
        ("mask_ratio=1", "mask_ratio must be in"),
        ("crop_size=30,64,64", "multiple of"),
        ("token=4,16,16", "8 or 16 voxels"),
        ("mask_block=0,1,1", "whole numbers above 0"),
        ("mask_block=2,2,3", r"\(2, 4, 4\) units .* mask_block \(2, 2, 3\)"),
        ("crop_size=64", "numbers such as"),
        ("similarity=l1", "must be one of"),
        ("warmup_iterations=2000", "warmup_iterations must be in .* got 2000 of 2000"),
        ("lr=-1", "lr must be positive, got -1.0"),
        ("precision=fp8", "precision must be one of auto, fp32, bf16, got 'fp8'"),
        ("matcher=eye", "must be one of"),
        ("ema=1.5", r"ema must be in \[0, 1\], got 1.5"),
        ("workers=-2", "workers must be 0 or more, got -2"),
        ("max_return=-1", "max_return must be 0 or more, got -1.0"),
        ("accumulate=3", "accumulate must divide batch_size"),
        ("weight_an=1 matcher=body", "weight_an needs the vectors of matcher embedding"),
        ("max_nonfinite=0", "must be positive"),
    ],
)
def test_wrong_settings_are_refused(assignment, message):
    with pytest.raises(UserError, match=message):
        config(*assignment.split(), preset="tiny")


def test_a_config_without_a_token_has_the_only_one_that_there_was():
    saved = config(preset="tiny").as_dict()
    del saved["encoder_arguments"]["token"], saved["method"]["mask_block"]
    assert config_from_dict(saved) == config(preset="tiny")


def test_an_unreadable_file_is_refused(tmp_path):
    (tmp_path / "c.json").write_text("{")
    for file in (tmp_path / "c.json", tmp_path / "none.json"):
        with pytest.raises(UserError, match="not a readable JSON"):
            config(file=file)


def test_every_field_is_described():
    for field in dataclasses.fields(PretrainConfig):
        assert f"        {field.name}: " in PretrainConfig.__doc__


def test_presets_and_settings_are_read_without_torch():
    code = (
        "import sys\n"
        "import alice_nnunet.matcher.presets, alice_nnunet.pretrain.embedding.config\n"
        "from alice_nnunet.pretrain.training.config import read_settings\n"
        "read_settings('nnformer', 'tiny', ['lr=1'])\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_learning_rate_is_in_proportion_to_the_pairs_in_a_step():
    paper = config()
    assert paper.peak_lr(8) == paper.lr == 5e-5  # 8 GPUs with 8 pairs each
    assert paper.peak_lr(1) == pytest.approx(5e-5 / 8)
    assert config("batch_size=64").peak_lr(1) == 5e-5
    assert rate(paper, 1) == "lr 6.25e-06 for 8 pairs in a step (5e-05 for 64)"
    assert rate(paper, 8) == "lr 5e-05"

    tiny = config(preset="tiny")
    assert tiny.peak_lr(1) == 3e-4 and tiny.peak_lr(2) == 6e-4
    assert config("lr_pairs=0", "lr=1e-3").peak_lr(8) == 1e-3


def test_runs_of_earlier_versions_keep_their_rate_and_views(tmp_path):
    earlier = config().as_dict()
    for name in ("lr_pairs", "windowed"):
        del earlier[name]
    for name in ("normalise", "dv_by", "weight_an", "target_flips"):
        del earlier["method"][name]

    (tmp_path / "config.json").write_text(json.dumps(earlier))
    assert config(file=tmp_path / "config.json") == config_from_dict(earlier)

    resumed = config_from_dict(earlier)
    assert resumed.peak_lr(1) == resumed.lr and resumed.windowed == ()
    assert resumed.method.normalise == "token"
    assert (resumed.method.dv_by, resumed.method.weight_an) == ("crop", 0)
    assert resumed.method.target_flips


@pytest.mark.parametrize("matcher", ["body", "same"])
def test_matchers_without_vectors_have_no_l_an(matcher):
    assert config(f"matcher={matcher}").method.weight_an == 0
    assert config("matcher=embedding").method.weight_an == 2


def test_no_weight_of_l_dv_and_l_st_is_reconstruction_alone():
    alone = config("weight_dv=0", "weight_st=0").method
    assert (alone.weight_an, alone.compares) == (0, False)
    assert config("weight_dv=0", "weight_an=1").method.weight_an == 1
