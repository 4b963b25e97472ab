"""Pictures are drawn of what they are given; whether they can be read, a person must see."""

import numpy as np
import torch
from matplotlib.colors import same_color

from alice_nnunet.model.tokens import patchify
from alice_nnunet.pictures import around_body, matches_figure, pair_figure, reconstruction_figure

SPACING = (3.0, 2.0, 2.0)


def body(shape: tuple[int, int, int], margin: int) -> np.ndarray:
    volume = np.zeros(shape, np.float32)
    volume[margin:-margin, margin:-margin, margin:-margin] = 0.5
    return volume


def test_matches_are_cut_to_the_body_at_one_scale_and_framed_by_their_score():
    query = around_body(body((40, 60, 60), 10), "a")
    key = around_body(body((30, 30, 30), 5), "b")
    assert query.low.tolist() == [7, 7, 7] and query.high.tolist() == [33, 53, 53]

    points = np.array([[20, 30, 30], [15, 20, 20]])
    matches = np.array([[15, 15, 15], [10, 10, 10]])
    figure = matches_figure(query, key, points, matches, [0.8, 0.5], SPACING, threshold=0.7)
    rows = np.array(figure.axes).reshape(2, 4)

    for row, colour in zip(rows, ("limegreen", "red")):
        assert all(same_color(axis.spines["top"].get_edgecolor(), colour) for axis in row[2:])
        for left, right in ((row[0], row[2]), (row[1], row[3])):
            assert np.ptp(left.get_xlim()) == np.ptp(right.get_xlim()) == 46
            assert np.ptp(left.get_ylim()) == np.ptp(right.get_ylim())

    assert "0.80, accepted" in rows[0, 2].get_title() and "rejected" in rows[1, 2].get_title()
    texts = {text.get_text() for text in rows[1, 0].texts}
    assert texts == {"2", "R", "L"}


def test_a_reconstruction_has_one_window_and_a_difference():
    unit = (8, 8, 8)
    crop = torch.rand(1, 16, 16, 16)
    perfect = patchify(crop[None], unit)[0]
    masked = torch.tensor([True] * 6 + [False] * 2)

    figure = reconstruction_figure(crop, perfect, masked, unit, SPACING, "step 3 of 9")
    images = [axis.images[0] for axis in figure.axes[:8]]
    assert {image.get_clim() for image in images[:6]} == {(0, 1)}
    assert np.abs(images[6].get_array()).max() < 1e-5
    assert "visible to the encoder (25%)" in figure.axes[2].get_title()
    assert figure.get_suptitle() == "step 3 of 9"


def test_a_pair_shows_its_middle_and_the_sides():
    crop = np.zeros((1, 8, 16, 16), np.float32)
    figure = pair_figure(crop, crop, SPACING, ("q", "k, score 0.70"))
    for axis in figure.axes:
        assert {text.get_text() for text in axis.texts} == {"R", "L"}
        assert [line.get_marker() for line in axis.lines] == ["+"]
