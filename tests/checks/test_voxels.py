"""CT that is not in HU, fragments, equal content. Good CT has no findings."""

import nibabel
import numpy as np
import pytest

from alice_nnunet.checks.findings import NO_DECISIONS, Decisions
from alice_nnunet.checks.voxels import check_channel, check_extent, content_digest, same_content

WINDOW = (-125.0, 255.0)
FILL = Decisions(fill_nan=True)


@pytest.fixture(scope="module")
def hu(real_ct) -> np.ndarray:
    return np.asarray(real_ct.dataobj, np.float32).T


def check(image, window=WINDOW, decisions=NO_DECISIONS, **named):
    return check_channel(image, window, "a_0000.nii.gz", decisions, **named)


NOT_HU = {
    "+1024": lambda hu: hu + 1024,
    "+1000, padded with -2000": lambda hu: np.where(hu < -900, -2000, hu + 1000),
    "intercept twice": lambda hu: hu - 1024,
    "0..1": lambda hu: np.clip((hu + 160) / 400, 0, 1),
    "-1..1": lambda hu: np.clip(hu / 1000, -1, 1),
    "z-score": lambda hu: (hu - hu.mean()) / hu.std(),
    "8 bits": lambda hu: np.clip((hu + 160) / 400 * 255, 0, 255).round(),
    "inverted": lambda hu: -hu,
    "ten times": lambda hu: 10 * hu,
    "labels": lambda hu: np.digitize(hu, (-500, -50, 200)).astype(np.float32),
}


@pytest.mark.parametrize("kind", NOT_HU)
def test_ct_that_is_not_in_hu(hu, kind):
    image = NOT_HU[kind](hu).astype(np.float32)
    (finding,) = check(image)
    assert finding.is_error and finding.kind == "not-hu"
    assert f"values from {image.min():g} to {image.max():g}" in finding.found
    assert "under -200" in finding.found and "--accept not-hu" in finding.remedy
    assert check(image, window=None) == []


@pytest.mark.parametrize("change", ["none", "padded", "clipped", "inner"])
def test_good_ct(hu, change):
    image = hu.copy()
    if change == "padded":
        image[:, :, :9] = -3024
    elif change == "clipped":
        image = np.clip(image, -150, 250)
    elif change == "inner":
        z, y, x = (n // 4 for n in image.shape)
        image = image[z:-z, y:-y, x:-x]
    assert check(image) == []


def test_shipped_ct_is_good(shipped_ct):
    for path in shipped_ct.values():
        image = np.asarray(nibabel.load(path).dataobj, np.float32).T
        assert check(image) == [], path


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite(hu, broken):
    image = hu.copy()
    image[:, :3] = broken
    (finding,) = check(image)
    assert finding.is_error and f"{image[:, :3].size} of {image.size}" in finding.found
    assert "--fill-nan" in finding.remedy

    (finding,) = check(image, decisions=FILL)
    assert not finding.is_error and "filled with -1024" in finding.text and "%" in finding.text
    assert (image[:, :3] == -1024).all() and np.array_equal(image[:, 3:], hu[:, 3:])


def test_nan_in_a_channel_that_is_not_ct_becomes_its_smallest_value():
    image = np.arange(64, dtype=np.float32).reshape(4, 4, 4)
    image[0, 0, 0] = np.nan
    (finding,) = check(image, None, FILL)
    assert image[0, 0, 0] == 1 and "filled with 1" in finding.text
    (finding,) = check(np.full((4, 4, 4), np.nan, np.float32), None, FILL)
    assert finding.is_error


def test_extent():
    assert check_extent((30.0, 40.0, 50.0), "the body", "a") == []
    (finding,) = check_extent((6.0, 40.0, 50.0), "the body", "a")
    assert finding.kind == "fragment" and "the body is 6 x 40 x 50 mm large" in finding.found


def test_equal_content(hu):
    def digest(image, spacing=(3, 2, 2)):
        return content_digest(image[None], spacing)

    other = hu.copy()
    other[::2, ::2, ::2] += 1
    assert digest(hu) == digest(hu.copy()) and digest(hu) != digest(hu, (3, 2, 1))
    digests = {"a": digest(hu), "b": digest(other), "c": digest(hu), "d": digest(hu[1:])}
    assert same_content(digests) == {"a": ["c"]}
