"""What the demo says of its own numbers."""

from alice_nnunet.demo.scores import Score, mean_of


def mean(*pairs: tuple[float, float]):
    return mean_of([Score("tumours", "a", "tumour", *pair) for pair in pairs])


def test_the_start_that_is_ahead_is_named():
    assert mean((0.5, 0.3), (0.4, 0.5)).words == (
        "tumours: mean Dice 0.450 from the pretrained encoder, 0.400 from random weights. The "
        "pretrained encoder is ahead by 0.050. Of 2 scores, pretraining makes 1 higher and 1 lower."
    )
    assert "Random weights are ahead by 0.100" in mean((0.3, 0.4)).words
    assert "Neither is ahead" in mean((0.3, 0.301), (0.0, 0.0)).words
