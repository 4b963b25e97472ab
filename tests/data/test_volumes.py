import pickle
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alice_nnunet.data.body import find_body
from alice_nnunet.data.volumes import (
    case_names,
    case_properties,
    check_volume,
    open_volume,
    remove_partial,
    save_volume,
)
from alice_nnunet.errors import UserError
from alice_nnunet.geometry import crop_around

SPACING = (3.0, 2.0, 2.0)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "Dataset022_Test" / "AlicePretrainPlans_3d_fullres"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).random((2, 20, 30, 40), np.float32)


def save(folder, case: str, image: np.ndarray) -> None:
    body = find_body(image[0] > -1, SPACING)
    known = {"spacing": SPACING, "body": body.to_dict(), "plans_sha256": "abc"}
    save_volume(folder, case, image, {"spacing": [1, 1, 1], "alice": known}, (16, 16, 16))


def flip_a_byte(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_what_is_saved_is_opened(folder, image):
    save(folder, "b", image)
    save(folder, "a", image[:1])
    assert case_names(folder) == ["a", "b"]
    volume = open_volume(folder, "b")
    assert (volume.name, volume.spacing, volume.image.shape) == ("b", SPACING, image.shape)
    assert volume.body.box == ((0, 0, 0), (20, 30, 40))
    np.testing.assert_array_equal(volume.image[:], image)
    np.testing.assert_array_equal(volume.image[1, 3:9, :, 5], image[1, 3:9, :, 5])
    assert sorted(path.name for path in folder.iterdir()) == ["a.b2nd", "a.pkl", "b.b2nd", "b.pkl"]
    assert case_properties(folder, "b")["spacing"] == [1, 1, 1]


def test_crops_are_read_from_the_file(folder, image):
    save(folder, "a", image)
    crop = open_volume(folder, "a").read_crop((1, 15, 39), (8, 8, 8))
    np.testing.assert_array_equal(crop[:, 3:, :, :5], image[:, 0:5, 11:19, 35:40])
    assert (crop[:, :3] == 0).all() and (crop[..., 5:] == 0).all()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.tuples(*[st.integers(-20, 50)] * 3), st.tuples(*[st.integers(1, 45)] * 3))
def test_a_crop_is_read_into_its_place_as_from_an_array(folder, image, centre, size):
    if not (folder / "a.pkl").exists():
        save(folder, "a", image)
    batch = np.full((3, 2, *size), np.nan, np.float32)
    open_volume(folder, "a").read_crop(centre, size, out=batch[1])
    np.testing.assert_array_equal(batch[1], crop_around(image, centre, size))
    assert np.isnan(batch[[0, 2]]).all()


def test_a_place_that_does_not_fit_is_not_written_to(folder, image):
    save(folder, "a", image)
    stored, index = (
        open_volume(folder, "a").image,
        (slice(None), slice(2, 6), slice(2, 6), slice(2, 6)),
    )
    for out in (
        np.zeros((2, 4, 4, 5), np.float32),
        np.zeros((2, 4, 4, 4)),
        np.zeros((2, 4, 4, 8), np.float32)[..., ::2],
    ):
        with pytest.raises(ValueError, match="do not go into"):
            stored.read_into(out, index)
        assert not out.any()


def test_checksums_are_zlibs(folder, image):
    save(folder, "a", image)
    assert case_properties(folder, "a")["alice"]["crc32"] == zlib.crc32(image)


def test_saving_again_replaces(folder, image):
    save(folder, "a", image)
    opened = open_volume(folder, "a").image
    assert opened.shape == image.shape
    save(folder, "a", 1 - image)
    np.testing.assert_array_equal(opened[:], image)  # a reader keeps the file it has opened
    np.testing.assert_array_equal(open_volume(folder, "a").image[:], 1 - image)


def test_failure_while_saving_leaves_nothing(folder, image, monkeypatch):
    monkeypatch.setattr("alice_nnunet.data.volumes.sync", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(folder, "a", image)
    assert list(folder.iterdir()) == []


def test_only_complete_cases_count_and_partial_ones_are_removed(folder, image):
    save(folder, "a", image)
    (folder / "killed.b2nd").write_bytes(b"")
    (folder / "killed_too.pkl").write_bytes(b"")
    (folder / ".partial_1").mkdir()
    (folder / ".partial_1" / "c.b2nd").write_bytes(b"")
    assert case_names(folder) == ["a"]
    remove_partial(folder)
    assert not (folder / ".partial_1").exists() and check_volume(folder, "a") is None
    assert case_names(folder / "nowhere") == []


def test_damage_is_found(folder, image):
    for case in "abcd":
        save(folder, case, image)
    flip_a_byte(folder / "a.b2nd")
    (folder / "b.b2nd").write_bytes((folder / "b.b2nd").read_bytes()[:1000])
    (folder / "c.pkl").write_bytes(b"")
    assert all(check_volume(folder, case) for case in "abc")
    assert check_volume(folder, "d") is None


@pytest.mark.parametrize("ending", ["b2nd", "pkl"])
def test_damage_is_a_clear_error(folder, image, ending):
    save(folder, "a", image)
    (folder / f"a.{ending}").write_bytes(b"no such thing")
    with pytest.raises(
        UserError, match=rf"a.{ending} is damaged .*alice-preprocess -d Dataset022_Test --verify"
    ):
        open_volume(folder, "a").image[:]


def test_properties_of_another_program_are_an_error(folder, image):
    save(folder, "a", image)
    (folder / "a.pkl").write_bytes(pickle.dumps({"spacing": [1, 1, 1]}))
    with pytest.raises(UserError, match=r"a\.pkl is damaged"):
        open_volume(folder, "a")


def test_a_changed_byte_is_found_when_it_is_read(folder, image):
    """Also one that decompresses: noise is stored as it is, so a changed voxel would go unseen."""
    save(folder, "a", image)
    intact = (folder / "a.b2nd").read_bytes()
    for position in range(200, len(intact) - 200, len(intact) // 40):
        content = bytearray(intact)
        content[position] ^= 0x10
        (folder / "a.b2nd").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.b2nd is damaged"):
            open_volume(folder, "a").image[:]


def test_a_file_that_changes_after_it_was_read_is_checked_again(folder, image):
    save(folder, "a", image)
    open_volume(folder, "a").image[:]
    content = bytearray((folder / "a.b2nd").read_bytes())
    content[len(content) // 3 : len(content) // 3 + 2000] = bytes(2000)
    (folder / "a.b2nd").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.b2nd is damaged"):
        open_volume(folder, "a").image[:]


def test_only_the_chunks_that_are_read_are_checked(folder):
    large = np.random.default_rng(0).random((1, 60, 70, 80), np.float32)
    save(folder, "a", large)
    stored = open_volume(folder, "a").image
    corner = (slice(None), slice(0, 4), slice(0, 4), slice(0, 4))

    def chunks(index):
        return stored.chunks_of(stored.bounds(index))

    assert chunks(corner) == {0} and chunks((0, 3, slice(None), 7)) < chunks(slice(None))
    assert (
        chunks(slice(None)) == set(range(stored.array.schunk.nchunks))
        and stored.array.schunk.nchunks > 8
    )
    stored[corner]
    assert stored.checked == {0}


@pytest.mark.parametrize("ending", ["b2nd", "pkl"])
def test_a_file_that_is_gone_is_a_clear_error(folder, image, ending):
    save(folder, "a", image)
    (folder / f"a.{ending}").unlink()
    with pytest.raises(
        UserError,
        match=rf"^[^ ]*a\.{ending} is missing: .* run alice-preprocess -d Dataset022_Test",
    ):
        open_volume(folder, "a").image[:]


def test_an_image_is_opened_when_it_is_asked_for(folder, image):
    save(folder, "a", image)
    stored = open_volume(folder, "a").image
    assert "array" not in vars(stored) and stored.shape == image.shape and "array" in vars(stored)
