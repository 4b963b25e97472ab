import contextlib
import dataclasses
import json

import numpy as np
import pytest

from alice_nnunet.errors import UserError
from alice_nnunet.matcher import index
from alice_nnunet.matcher.embedding import Embedding, pack
from alice_nnunet.matcher.index import is_whole, open_embedding, save_embedding, stem_of

MADE_FROM = {"weights": "0123abcd", "volume": 4711}


@pytest.fixture
def embedding() -> Embedding:
    return pack(
        np.random.default_rng(0).normal(size=(8, 7, 8, 10)).astype(np.float32),
        (1.5, 2.25, -3.0),
        (6.1, 5.2, 4.3),
    )


@pytest.fixture
def folder(tmp_path, embedding):
    """The index of Dataset022_Test with one case."""
    folder = tmp_path / "Dataset022_Test" / "AlicePretrainPlans_anatomy"
    folder.mkdir(parents=True)
    save_embedding(folder, "case", embedding, MADE_FROM)
    return folder


def test_what_is_opened_is_what_was_saved(folder, embedding):
    opened = open_embedding(folder, "case")
    for name in ("grid", "origin", "step", "scale"):
        assert getattr(opened, name) == getattr(embedding, name) and type(
            getattr(opened, name)
        ) is type(getattr(embedding, name))
    for name in ("middles", "blocks"):
        assert (
            np.array_equal(getattr(opened, name), getattr(embedding, name))
            and getattr(opened, name).dtype == np.int8
        )
    asked = embedding.vectors(embedding.position(np.array([3, 4, 5])) + np.zeros((53, 3)))
    (found, similarity), (expected, expected_similarity) = opened.find(asked), embedding.find(asked)
    assert found.tolist() == expected.tolist() and similarity == expected_similarity
    assert sorted(p.name for p in folder.iterdir()) == ["case.json", "case.npy"]


def test_the_memory_layout_of_an_embedding_does_not_matter(folder, embedding):
    """That of a small body is Fortran's."""
    turned = dataclasses.replace(embedding, middles=np.asfortranarray(embedding.middles[:1]))
    turned = dataclasses.replace(turned, blocks=np.asfortranarray(embedding.blocks[:1]))
    turned = dataclasses.replace(turned, grid=(1, 1, 1))
    save_embedding(folder, "case", turned, MADE_FROM)
    assert is_whole(folder, "case", MADE_FROM)
    assert np.array_equal(open_embedding(folder, "case").blocks, turned.blocks)


def test_vectors_stay_on_the_disk(folder):
    opened = open_embedding(folder, "case")
    assert isinstance(opened.middles, np.memmap) and isinstance(opened.blocks, np.memmap)
    assert not opened.blocks.flags.writeable


def test_it_is_whole_for_what_it_was_made_from_and_nothing_else(folder):
    assert is_whole(folder, "case", MADE_FROM) and is_whole(
        folder, "case", dict(MADE_FROM), read_all=False
    )
    for other in (MADE_FROM | {"weights": "ffff"}, MADE_FROM | {"volume": 1}, {}):
        assert not is_whole(folder, "case", other) and not is_whole(
            folder, "case", other, read_all=False
        )
    assert not is_whole(folder, "another", MADE_FROM)


def test_a_changed_byte_is_found_by_the_checksum(folder):
    content = bytearray((folder / "case.npy").read_bytes())
    content[-20] ^= 1
    (folder / "case.npy").write_bytes(content)
    assert not is_whole(folder, "case", MADE_FROM)


def damage(folder, what: str) -> None:
    array, description = folder / "case.npy", folder / "case.json"
    known = json.loads(description.read_text())
    {
        "cut off": lambda: array.write_bytes(array.read_bytes()[:-50]),
        "cut off in the header": lambda: array.write_bytes(array.read_bytes()[:20]),
        "empty": lambda: array.write_bytes(b""),
        "no array": lambda: array.unlink(),
        "no description": lambda: description.unlink(),
        "half a description": lambda: description.write_text(description.read_text()[:60]),
        "an empty description": lambda: description.write_text(""),
        "a list": lambda: description.write_text("[]"),
        "no grid": lambda: description.write_text(
            json.dumps({k: v for k, v in known.items() if k not in ("grid", "crc32")})
        ),
        "another grid": lambda: description.write_text(
            json.dumps(known | {"grid": [30, 40, 50], "crc32": 1})
        ),
    }[what]()


DAMAGES = [
    "cut off",
    "cut off in the header",
    "empty",
    "no array",
    "no description",
    "half a description",
    "an empty description",
    "a list",
    "no grid",
    "another grid",
]


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_named_with_the_remedy(folder, what):
    damage(folder, what)
    assert not is_whole(folder, "case", MADE_FROM)
    with pytest.raises(
        UserError, match=r"embedding of case in .*: run alice-embed -d Dataset022_Test"
    ):
        open_embedding(folder, "case")


def test_no_damage_of_the_header_is_a_traceback(folder):
    """Each byte of it changed in turn."""
    intact = (folder / "case.npy").read_bytes()
    header = (
        len(intact)
        - open_embedding(folder, "case").blocks.size
        - open_embedding(folder, "case").middles.size
    )
    for position in range(header):
        content = bytearray(intact)
        content[position] ^= 1
        (folder / "case.npy").write_bytes(content)
        is_whole(folder, "case", MADE_FROM)
        with contextlib.suppress(UserError):
            open_embedding(folder, "case")


@pytest.mark.parametrize("moment", ["array", "description"])
def test_an_interrupted_save_leaves_nothing_that_counts(folder, embedding, monkeypatch, moment):
    """Neither of the new embedding nor of the old one, whose array may be gone already."""

    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        *(index.np, "save", stopped)
        if moment == "array"
        else (index, "write_json_atomically", stopped)
    )
    with pytest.raises(KeyboardInterrupt):
        save_embedding(folder, "case", embedding, MADE_FROM | {"weights": "new"})
    assert not any(
        is_whole(folder, "case", made, read_all=all_of_it)
        for made in (MADE_FROM, MADE_FROM | {"weights": "new"})
        for all_of_it in (True, False)
    )
    with pytest.raises(UserError, match="alice-embed"):
        open_embedding(folder, "case")
    monkeypatch.undo()
    save_embedding(folder, "case", embedding, MADE_FROM)
    assert is_whole(folder, "case", MADE_FROM) and len(list(folder.iterdir())) == 2


def test_a_case_has_the_name_of_no_other_file_and_of_no_other_case(folder, embedding):
    taken = ["coverage.json", "coverage.png", "partners.npz", "config.json"]
    for name in taken:
        (folder / name).write_text("{}")
    cases = ["coverage", "Coverage", "coverage.case", "coverage.case.case", "partners", "config"]
    assert len({stem_of(case) for case in (*cases, "case")}) == len(cases) + 1

    for case in cases:
        save_embedding(folder, case, embedding, MADE_FROM)
    assert all((folder / name).read_text() == "{}" for name in taken)
    for case in cases:
        assert is_whole(folder, case, MADE_FROM)
        assert np.array_equal(open_embedding(folder, case).blocks, embedding.blocks)
