import numpy as np
import pytest

from alice_nnunet.checks.channels import channels_text, check_channel_names, check_same_grid
from alice_nnunet.checks.header import Geometry


@pytest.mark.parametrize(
    "name", ["CTA", "CT portal venous", "ct_arterial", "CT1", "cbct", "Low-dose CT", " CT"]
)
def test_names_that_contain_ct_ask(name):
    (finding,) = check_channel_names({"0": "CT", "1": name})
    assert finding.is_error and f'channel 1 is called "{name}"' in finding.found
    assert "z-score" in finding.expected and "--accept channel-name" in finding.remedy


def test_other_names_do_not():
    names = {"0": "CT", "1": "ct", "2": "PET", "3": "T1", "4": "SPECT", "5": "contrast"}
    assert check_channel_names(names) == []
    assert channels_text({"0": "CT", "1": "PET"}) == (
        'channels: 0 "CT" is CT in HU, 1 "PET" is not CT'
    )


def test_channels_on_one_grid():
    first = Geometry((20, 22, 24), np.diag([2.0, 2.0, 3.0, 1.0]))
    moved = Geometry(first.shape, first.affine + 0)
    moved.affine[2, 3] = 4
    assert check_same_grid({"a": first, "b": first}) == []
    (finding,) = check_same_grid({"a": first, "b": moved})
    assert finding.file == "b" and "4 mm apart" in finding.found
    (finding,) = check_same_grid({"a": first, "b": Geometry((20, 22, 23), first.affine)})
    assert "(20, 22, 23) and (20, 22, 24)" in finding.found
