"""A few rounds of tests/helpers/kill_harness.py, which by hand does many."""

from tests.helpers.kill_harness import SAVE_EVERY, kill_again_and_again, same_end


def test_killed_again_and_again_it_loses_no_more_than_an_interval(tmp_path):
    rows, whole, killed = kill_again_and_again(tmp_path, kills=4, seed=1, steps=20)
    assert rows and rows[0]["left a part"]
    assert all(row["lost"] <= SAVE_EVERY for row in rows)
    assert same_end(whole, killed)
