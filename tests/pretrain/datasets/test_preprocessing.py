"""Preprocessing of unlabeled volumes: geometry, faults, restarts, kills."""

import json
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from alice_nnunet.data.volumes import case_names, open_volume
from alice_nnunet.datasets.raw_dataset import open_raw_dataset
from alice_nnunet.errors import UserError
from alice_nnunet.files import locked
from alice_nnunet.pretrain.commands.preprocess import main
from alice_nnunet.pretrain.datasets.preprocessing import preprocess_dataset, settle_plans

PREPROCESSED = Path("preprocessed") / "Dataset022_Test"
RAS = np.diag([3.0, 3.0, 4.0, 1.0])


def thing(shape=(30, 28, 20), seed: int = 0, affine=RAS, dtype=np.int16) -> nibabel.Nifti1Image:
    """A noisy box of tissue in air, HU."""
    voxels = np.full(shape, -1000.0)
    inner = tuple(slice(n // 6, n - n // 6) for n in shape)
    voxels[inner] = np.random.default_rng(seed).normal(40, 60, voxels[inner].shape)
    return nibabel.Nifti1Image(voxels.astype(dtype), affine)


def native(image: nibabel.Nifti1Image) -> tuple:
    """Spacing (z, y, x) at which an image that is stored in RAS order is not resampled."""
    return tuple(float(edge) for edge in image.header.get_zooms()[::-1])


@pytest.fixture
def dataset_folder(nnunet_folders):
    return nnunet_folders / PREPROCESSED


@pytest.fixture
def cases_folder(dataset_folder):
    return dataset_folder / "AlicePretrainPlans_3d_fullres"


def read_report(dataset_folder) -> dict:
    return json.loads((dataset_folder / "AlicePretrainPlans_report.json").read_text())


def stamps(folder) -> dict:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.b2nd")}


def test_window_and_orientation_of_a_real_ct(raw_dataset, real_ct, cases_folder):
    """At its own spacing, a case is the window of its HU values, along S, A, R as (z, y, x)."""
    ras = nibabel.as_closest_canonical(real_ct)
    raw_dataset({"a": real_ct})

    preprocess_dataset(22, 1, spacing=native(ras))

    volume = open_volume(cases_folder, "a")
    expected = np.clip((np.asarray(ras.dataobj, np.float32).transpose(2, 1, 0) + 125) / 380, 0, 1)
    np.testing.assert_allclose(volume.image[0], expected, atol=1e-6)
    assert volume.image.shape[0] == 1 and volume.image[:].dtype == np.float32

    point = volume.body.random_point(np.random.default_rng(0))
    assert volume.body.contains(point) and volume.spacing == native(ras)


def test_one_scan_in_any_orientation_gives_one_volume(raw_dataset, real_ct, cases_folder):
    tilt = np.eye(4)
    tilt[:3, :3] = nibabel.eulerangles.euler2mat(0.06, -0.04, 0.08)
    oblique = nibabel.Nifti1Image(np.asarray(real_ct.dataobj), tilt @ real_ct.affine)

    def stored_as(image, codes):
        return image.as_reoriented(
            ornt_transform(io_orientation(image.affine), axcodes2ornt(codes))
        )

    raw_dataset(
        {
            "as_is": real_ct,
            "ras": stored_as(real_ct, "RAS"),
            "lps": stored_as(real_ct, "LPS"),
            "sagittal": stored_as(real_ct, "PIR"),
            "oblique": oblique,
            "oblique_sagittal": stored_as(oblique, "ASL"),
        }
    )
    edges = native(nibabel.as_closest_canonical(real_ct))
    preprocess_dataset(22, 1, spacing=tuple(1.3 * edge for edge in edges))

    volumes = [open_volume(cases_folder, case) for case in case_names(cases_folder)]
    assert len(volumes) == 6
    for volume in volumes[1:]:
        np.testing.assert_allclose(volume.image[:], volumes[0].image[:], atol=1e-5)
        assert volume.body.box == volumes[0].body.box


def test_size_after_resampling(raw_dataset, cases_folder):
    raw_dataset({"a": thing((30, 28, 20))})

    preprocess_dataset(22, 1, spacing=(2.0, 4.0, 1.5))

    volume = open_volume(cases_folder, "a")
    assert volume.image.shape == (1, 40, 21, 60) and volume.spacing == (2.0, 4.0, 1.5)
    image = volume.image[:]
    assert image.min() == 0 and image.max() <= 1  # the window holds after cubic resampling


def test_spoiled_inputs_are_listed_and_the_rest_go_on(
    raw_dataset, dataset_folder, cases_folder, tmp_path, capsys
):
    nibabel.save(thing(), tmp_path / "whole.nii.gz")
    whole = (tmp_path / "whole.nii.gz").read_bytes()
    hollow = np.full((30, 28, 20), -1000, np.int16)
    hollow[4, 4, 4] = 50
    nan = thing(dtype=np.float32).get_fdata(dtype=np.float32)
    nan[3, :, :] = np.nan

    raw_dataset(
        {
            "good": thing(),
            "small": thing((8, 9, 10)),
            "truncated": whole[: len(whole) // 2],
            "text": b"hello\n" * 99,
            "nothing": b"",
            "four_d": nibabel.Nifti1Image(np.ones((9, 9, 9, 2), np.int16), RAS),
            "two_d": nibabel.Nifti1Image(np.ones((9, 9), np.int16), RAS),
            "slice": nibabel.Nifti1Image(np.ones((9, 9, 1), np.int16), RAS),
            "nan": nibabel.Nifti1Image(nan, RAS),
            "air": nibabel.Nifti1Image(np.full((11, 11, 9), -1024, np.int16), RAS),
            "speck": nibabel.Nifti1Image(hollow, RAS),
        }
    )

    main(["-d", "22", "-np", "1", "-spacing", "4", "3", "3"])

    report = read_report(dataset_folder)
    assert report["ok"] == ["good"] == case_names(cases_folder)
    expected = {
        "small": "a fragment: the volume is 24 x 27 x 40 mm",
        "truncated": "cannot be read",
        "text": "cannot be read",
        "nothing": "cannot be read",
        "four_d": "shape is (9, 9, 9, 2)",
        "two_d": "shape is (9, 9)",
        "slice": "only one slice",
        "nan": "560 of 16800 voxels are not finite",
        "air": "only air",
        "speck": "no body found",
    }
    assert report["failed"].keys() == expected.keys()

    shown = capsys.readouterr().out
    for case, words in expected.items():
        assert words in report["failed"][case]
        assert f"{case}: {report['failed'][case]}\n" in shown
    assert "1 cases good, 10 failed" in shown and "Traceback" not in shown


def test_a_file_in_another_unit_does_not_fill_the_disk(raw_dataset, dataset_folder):
    """In micrometres, that thing would take 16 TB. Its other faults do not count."""
    large = np.diag([3000.0, 3000.0, 4000.0, 1.0])
    small = np.diag([0.003, 0.003, 0.004, 1.0])
    raw_dataset({"good": thing(), "large": thing(affine=large), "small": thing(affine=small)})

    main(["-d", "22", "-np", "1", "-spacing", "4", "3", "3"])

    report = read_report(dataset_folder)
    assert report["ok"] == ["good"]
    expected = "mm; expected 0.05 to 50 mm. Are the sizes in another unit? Correct the header, or"
    for case in ("large", "small"):
        assert expected in report["failed"][case]
        assert "fragment" not in report["failed"][case]


def test_no_good_case_is_an_error_after_the_report(raw_dataset, dataset_folder, capsys):
    raw_dataset({"a": b"text", "b": b""})

    with pytest.raises(SystemExit) as end:
        main(["-d", "22", "-np", "1"])
    assert end.value.code == 2
    assert "alice-preprocess: none of 2 cases" in capsys.readouterr().err
    report = read_report(dataset_folder)
    assert report["ok"] == [] and report["failed"].keys() == {"a", "b"}


def test_done_cases_are_skipped_and_leftovers_go(raw_dataset, cases_folder, capsys):
    raw_dataset({"a": thing(seed=1), "b": thing(seed=2)})
    preprocess_dataset(22, 1, spacing=(4, 3, 3))
    before = stamps(cases_folder)

    (cases_folder / "b.pkl").unlink()  # as if killed between the two files
    (cases_folder / ".partial_x").mkdir()
    raw_dataset({"c": thing(seed=3)})
    report = preprocess_dataset("Dataset022_Test", 1)

    assert report["ok"] == ["a", "b", "c"] and report["failed"] == report["warnings"] == {}
    after = stamps(cases_folder)
    assert after["a.b2nd"] == before["a.b2nd"] and after["b.b2nd"] != before["b.b2nd"]
    assert "1 of 3 cases are already preprocessed" in capsys.readouterr().out
    assert not (cases_folder / ".partial_x").exists()


def test_images_that_are_gone_do_not_take_their_case_along(raw_dataset, cases_folder, capsys):
    folder = raw_dataset({"a": thing(seed=1), "b": thing(seed=2)})
    preprocess_dataset(22, 1, spacing=(4, 3, 3))
    (folder / "imagesTr" / "b_0000.nii.gz").unlink()
    assert preprocess_dataset(22, 1)["ok"] == ["a"]
    assert "1 preprocessed cases have no images" in capsys.readouterr().out
    assert case_names(cases_folder) == ["a", "b"]

    (cases_folder / "b.b2nd").write_bytes(b"")
    assert "no longer in nnUNet_raw" in preprocess_dataset(22, 1, verify=True)["failed"]["b"]
    assert case_names(cases_folder) == ["a"]


def test_changed_plans_need_overwrite(raw_dataset, dataset_folder, cases_folder):
    raw_dataset({"a": thing()})
    preprocess_dataset(22, 1, spacing=(4, 3, 3), patch_size=(16, 16, 16))
    before = stamps(cases_folder)
    plans_file = dataset_folder / "AlicePretrainPlans.json"

    for numbers in ({"spacing": (4, 4, 4)}, {"patch_size": (16, 16, 32)}):
        with pytest.raises(
            UserError, match=r"AlicePretrainPlans.json says .*, but .* was requested.*--overwrite"
        ):
            preprocess_dataset(22, 1, **numbers)
    preprocess_dataset(22, 1, spacing=(4, 3, 3), patch_size=(16, 16, 16))

    plans = json.loads(plans_file.read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [5, 5, 5]
    plans_file.write_text(json.dumps(plans))
    with pytest.raises(UserError, match=r"has changed since a was preprocessed.*--overwrite"):
        preprocess_dataset(22, 1)
    assert stamps(cases_folder) == before  # nothing was lost
    assert read_report(dataset_folder)["ok"] == ["a"]

    preprocess_dataset(22, 1, overwrite=True)
    assert open_volume(cases_folder, "a").spacing == (5, 5, 5)  # what was edited by hand stays
    preprocess_dataset(22, 1, overwrite=True, spacing=(4.0, 4.0, 4.0))
    assert open_volume(cases_folder, "a").image.shape == (1, 20, 21, 22)
    plans = json.loads(plans_file.read_text())
    assert plans["configurations"]["3d_fullres"]["patch_size"] == [16, 16, 16]


def test_verify_does_damaged_cases_again(raw_dataset, cases_folder, capsys):
    raw_dataset({"a": thing(seed=1), "b": thing(seed=2), "c": thing(seed=3)})
    preprocess_dataset(22, 1, spacing=(4, 3, 3))
    expected = {case: open_volume(cases_folder, case).image[:] for case in "abc"}
    before = stamps(cases_folder)

    content = bytearray((cases_folder / "a.b2nd").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (cases_folder / "a.b2nd").write_bytes(content)
    (cases_folder / "b.pkl").write_bytes(b"")
    capsys.readouterr()

    report = preprocess_dataset(22, 1, verify=True)
    assert report["ok"] == ["a", "b", "c"] and report["failed"] == {}
    shown = capsys.readouterr().out
    assert "a: " in shown and "b: " in shown and "c: " not in shown
    for case in "abc":
        np.testing.assert_array_equal(open_volume(cases_folder, case).image[:], expected[case])
    assert stamps(cases_folder)["c.b2nd"] == before["c.b2nd"]


def test_two_channels(raw_dataset, cases_folder):
    ct = thing()
    mr = nibabel.Nifti1Image(
        np.random.default_rng(1).integers(1, 500, ct.shape).astype(np.int16), RAS
    )
    elsewhere = nibabel.Nifti1Image(np.asarray(mr.dataobj), np.diag([3.0, 3.0, 4.5, 1.0]))
    raw_dataset({"a": [ct, mr], "no_mr": [ct], "other_grid": [ct, elsewhere]}, ("CT", "T1"))

    report = preprocess_dataset(22, 1, spacing=(4, 3, 3))

    assert report["ok"] == ["a"]
    assert report["failed"]["no_mr"] == "no_mr_0001.nii.gz is missing"
    assert "another grid" in report["failed"]["other_grid"]

    image = open_volume(cases_folder, "a").image[:]
    np.testing.assert_allclose(image[0], np.clip((ct.get_fdata().T + 125) / 380, 0, 1), atol=1e-6)
    raw = mr.get_fdata().T
    zscore = (raw - raw.mean()) / raw.std()  # nnU-Net's own scheme
    np.testing.assert_allclose(image[1], zscore, atol=1e-4)


def test_body_of_a_dataset_without_ct_is_its_nonzero_region(raw_dataset, cases_folder):
    voxels = np.zeros((30, 30, 30), np.int16)
    voxels[6:24, 9:27, 3:27] = np.random.default_rng(0).integers(1, 500, (18, 18, 24))
    raw_dataset({"a": nibabel.Nifti1Image(voxels, np.diag([4.0, 4.0, 4.0, 1.0]))}, ("MR",))

    preprocess_dataset(22, 1, spacing=(4, 4, 4))

    volume = open_volume(cases_folder, "a")
    assert volume.image.shape == (1, 24, 18, 18)  # nnU-Net crops to the nonzero region
    assert volume.body.box == ((0, 0, 0), (24, 18, 18)) and volume.body.cells.all()


def test_folder_that_cannot_be_written_or_is_in_use(
    raw_dataset, dataset_folder, monkeypatch, tmp_path
):
    raw_dataset({"a": thing()})
    dataset_folder.mkdir()
    with (
        locked(dataset_folder / "AlicePretrainPlans.lock"),
        pytest.raises(UserError, match="is working in"),
    ):
        preprocess_dataset(22, 1)

    (tmp_path / "a_file").touch()
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "a_file"))
    with pytest.raises(UserError, match=r"cannot write to .*nnUNet_preprocessed"):
        preprocess_dataset(22, 1)


def start(folder: Path, program: Path, processes: int) -> subprocess.Popen:
    """The command as a user starts it, from another folder."""
    command = [program, "-d", "22", "-np", str(processes)]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_killed_command_goes_on_where_it_was(
    raw_dataset, dataset_folder, cases_folder, tmp_path, programs
):
    raw_dataset({f"case{n}": thing((40, 40, 40), seed=n) for n in range(8)})
    dataset_folder.mkdir()
    settle_plans(open_raw_dataset(22), False, (2.0, 1.5, 1.5), (32, 32, 32))

    killed = start(tmp_path, Path(sys.executable).with_name("alice-preprocess"), processes=2)
    while not case_names(cases_folder) and killed.poll() is None:
        time.sleep(0.02)
    killed.kill()
    killed.communicate()  # the pipes close when its workers have ended, too

    done = case_names(cases_folder)
    before = {name: stamp for name, stamp in stamps(cases_folder).items() if name[:-5] in done}
    assert 1 <= len(done) < 8
    assert not (dataset_folder / "AlicePretrainPlans_report.json").exists()

    command = start(tmp_path, programs / "alice-preprocess", processes=1)
    out, err = command.communicate()

    assert command.returncode == 0, err
    assert f"{len(done)} of 8 cases are already preprocessed" in out
    assert "8 cases good, 0 failed" in out
    assert err == ""  # nothing of nnU-Net's, and no bar where there is no terminal
    assert stamps(cases_folder).items() >= before.items()
    assert {path.suffix for path in cases_folder.iterdir()} == {".b2nd", ".pkl"}
