import pytest
import torch

from alice_nnunet.settings.device import keep_to_omp_num_threads


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "asked, used", [("1", 1), ("2,1", 2), ("8", 4), ("0", 4), ("", 4), ("many", 4)]
)
def test_threads_are_no_more_than_asked_for(asked, used, four_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    keep_to_omp_num_threads()
    assert torch.get_num_threads() == used
