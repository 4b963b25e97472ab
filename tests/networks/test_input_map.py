"""InputMap: nnU-Net's z-scores to the pretraining's window, and back-to-front axes."""

import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

from alice_nnunet.networks.input_map import InputMap

LOW = -125.0  # HU
HIGH = 255.0
STATISTICS = {"mean": 83.0, "std": 41.0, "percentile_00_5": -400.0, "percentile_99_5": 700.0}


def stock_map() -> InputMap:
    span = HIGH - LOW
    return InputMap(
        [STATISTICS["std"] / span], [(STATISTICS["mean"] - LOW) / span], [0.0], [1.0], []
    )


def test_stock_z_scores_become_the_pretraining_window():
    hu = np.linspace(-1000, 3000, 4000, dtype=np.float32).reshape(1, 20, 20, 10)
    z = CTNormalization(False, STATISTICS).run(hu.copy())
    mapped = stock_map()(torch.from_numpy(z)[None])
    clamped = stock_map().clamp(mapped)

    stem_expects = (np.clip(hu, -400, 700) - LOW) / (HIGH - LOW)
    encoder_expects = (np.clip(hu, LOW, HIGH) - LOW) / (HIGH - LOW)
    np.testing.assert_allclose(mapped[0].numpy(), stem_expects, atol=1e-5)
    np.testing.assert_allclose(clamped[0].numpy(), encoder_expects, atol=1e-5)


def test_matched_plans_give_the_identity():
    image = torch.rand(2, 1, 4, 5, 6)
    matched = InputMap([1.0], [0.0], [0.0], [1.0], [])
    assert torch.equal(matched(image), image) and torch.equal(matched.clamp(matched(image)), image)


def test_no_clamp_where_the_range_is_none():
    image = torch.randn(1, 2, 4, 4, 4) * 5
    both = InputMap([1.0, 1.0], [0.0, 0.0], [0.0, None], [1.0, None], [])
    clamped = both.clamp(both(image))
    assert torch.equal(clamped[:, 0], image[:, 0].clamp(0, 1))
    assert torch.equal(clamped[:, 1], image[:, 1])


def test_flips_y_and_x_as_lps_data_need_it():
    image = torch.rand(1, 1, 3, 4, 5)
    turned = InputMap([1.0], [0.0], [None], [None], [1, 2])
    assert torch.equal(turned(image), torch.from_numpy(image.numpy()[:, :, :, ::-1, ::-1].copy()))
    assert torch.equal(turned.turn(turned(image)), image)


def test_nothing_is_in_the_state_dict_and_bad_values_are_refused():
    assert not stock_map().state_dict()
    with pytest.raises(ValueError, match="one value per channel"):
        InputMap([1.0], [0.0, 0.0], [0.0], [1.0], [])
    with pytest.raises(ValueError, match="0, 1, 2"):
        InputMap([1.0], [0.0], [0.0], [1.0], [3])
