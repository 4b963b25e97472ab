"""Reading nnU-Net's plans."""

import pytest

from alice_nnunet.errors import UserError
from alice_nnunet.finetuning.nnunet_plans import configuration_of
from tests.helpers.finetuning import stock_plans


def test_inheritance_is_resolved_and_only_3d_goes():
    base = stock_plans()
    base["configurations"] |= {
        "big": {"inherits_from": "3d_fullres", "batch_size": 9},
        "bigger": {"inherits_from": "big", "patch_size": [64, 64, 64]},
        "2d": {"patch_size": [64, 64]},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }

    bigger = configuration_of(base, "bigger")
    assert bigger["batch_size"] == 9 and bigger["patch_size"] == [64, 64, 64]
    assert bigger["spacing"] == [3.05, 2.95, 3.0]
    assert "inherits_from" not in bigger

    for name, said in (
        ("2d", "2D or a cascade"),
        ("3d_cascade_fullres", "2D or a cascade"),
        ("3d_lowres", "have 3d_fullres"),
    ):
        with pytest.raises(UserError, match=said):
            configuration_of(base, name)
