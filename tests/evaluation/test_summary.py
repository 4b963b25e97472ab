import itertools
import json
import math
import statistics

import numpy as np
import pytest

from alice_nnunet.evaluation.box_plot import box_plot
from alice_nnunet.evaluation.organs import Organ, OrganSet
from alice_nnunet.evaluation.scores import Score
from alice_nnunet.evaluation.summary import MEAN, as_dict, compare, difference, spread, summarise
from alice_nnunet.evaluation.tables import comparison_table, summary_table
from alice_nnunet.pictures import save_figure

NAN = float("nan")
ORGANS = OrganSet(
    "own", (Organ("liver", (1,), 5.0), Organ("spleen", (2,), 2.5), Organ("absent", (3,), 2.0))
)


def scored(liver: list[float], spleen: list[float]) -> dict[str, list[Score]]:
    """NSD is half of DSC; no case has the third organ."""
    return {
        f"case{i}": [
            Score("liver", a, a / 2, 9, 9),
            Score("spleen", b, b / 2, 9, 9),
            Score("absent", NAN, NAN, 0, 0),
        ]
        for i, (a, b) in enumerate(zip(liver, spleen))
    }


def exact_p(differences: list[float]) -> float:
    """Two-sided p of the signed-rank test by all signs; differences without ties or zeros."""
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    observed = sum(r for r, d in zip(ranks, differences) if d > 0)
    sums = [
        sum(r for r, s in zip(ranks, signs) if s)
        for signs in itertools.product((0, 1), repeat=len(ranks))
    ]
    return min(
        1.0, 2 * min(np.mean([s <= observed for s in sums]), np.mean([s >= observed for s in sums]))
    )


def test_mean_and_spread_leave_out_what_does_not_count():
    liver, spleen = [0.9, 0.8, 0.4], [0.5, NAN, 0.6]
    summary = summarise(scored(liver, spleen))
    assert summary["liver"]["dsc"].mean == pytest.approx(0.7) and summary["liver"][
        "dsc"
    ].std == pytest.approx(statistics.stdev(liver))
    assert summary["liver"]["nsd"].mean == pytest.approx(0.35)
    assert (summary["spleen"]["dsc"].n, summary["spleen"]["dsc"].mean) == (2, pytest.approx(0.55))
    assert (
        summary["absent"]["dsc"] == spread(np.array([NAN]))
        and summary["absent"]["dsc"].mean is None
    )
    assert (
        summary[MEAN]["dsc"].mean == pytest.approx((0.7 + 0.8 + 0.5) / 3)
        and summary[MEAN]["dsc"].n == 3
    )


def test_wilcoxon_against_all_signs():
    rng = np.random.default_rng(0)
    for cases in (3, 6, 9):
        differences = rng.normal(0.3, 1, cases).tolist()
        found = difference(np.array([*differences, NAN, 1.0]), np.array([0.0] * cases + [1.0, NAN]))
        assert (
            found.n == cases
            and found.mean == pytest.approx(np.mean(differences))
            and found.p == pytest.approx(exact_p(differences))
        )
    assert difference(np.ones(4), np.ones(4)).p == 1
    assert difference(np.array([NAN]), np.ones(1)) == difference(np.array([]), np.array([]))


def test_the_comparison_is_paired_by_case():
    first, second = (
        scored([0.9, 0.8, 0.7], [0.6, 0.5, NAN]),
        scored([0.5, 0.7, 0.65], [0.5, 0.45, 0.3]),
    )
    shuffled = dict(reversed(second.items()))
    found = compare(first, shuffled)
    assert found == compare(first, second)
    assert found["liver"]["dsc"].mean == pytest.approx((0.4 + 0.1 + 0.05) / 3) and found["liver"][
        "dsc"
    ].p == pytest.approx(0.25)
    assert found["spleen"]["dsc"].n == 2 and found["absent"]["dsc"].n == 0


def test_tables_and_json_and_picture(tmp_path):
    scores = {"ours": scored([0.9, 0.8], [0.5, NAN]), "theirs": scored([0.5, 0.7], [0.5, 0.4])}
    lines = summary_table("title", summarise(scores["ours"]), ORGANS).splitlines()
    assert len(set(map(len, lines[1:]))) == 1
    assert lines[3].split() == ["liver", "5", "85.00", "+-", "7.07", "42.50", "+-", "3.54", "2"]
    assert lines[4].split() == ["spleen", "2.5", "50.00", "+-", "-", "25.00", "+-", "-", "1"]
    assert lines[5].split() == ["absent", "2", "-", "+-", "-", "-", "+-", "-", "0"] and lines[
        7
    ].startswith(MEAN)
    text = comparison_table("title", compare(*scores.values()))
    assert "+25.00" in text and "fewer than 6 cases" in text
    content = json.loads(json.dumps(as_dict(ORGANS, scores, ("lost",)), allow_nan=False))
    ours = content["predictions"]["ours"]
    assert ours["organs"]["liver"]["dsc"] == {
        "mean": pytest.approx(0.85),
        "std": pytest.approx(math.sqrt(0.005)),
        "n": 2,
    }
    assert ours["foreground_mean_as_nnunet"]["dsc"] == pytest.approx((0.85 + 0.5) / 2)
    assert ours["mean_over_organs_of_each_case"]["dsc"]["mean"] == pytest.approx((0.7 + 0.8) / 2)
    assert content["first_less_second"]["liver"]["dsc"]["mean"] == pytest.approx(0.25) and content[
        "cases_left_out"
    ] == ["lost"]
    figure = box_plot(scores)
    flat = [
        line.get_ydata()
        for line in figure.axes[0].lines
        if line.get_color() == "black" and len(set(line.get_ydata())) == 1
    ]
    assert any(height[0] == pytest.approx(85) for height in flat)  # the median of the liver
    save_figure(figure, tmp_path / "boxes.png")
    assert (tmp_path / "boxes.png").read_bytes().startswith(b"\x89PNG")
