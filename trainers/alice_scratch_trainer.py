"""The honest baseline of AliceTrainer."""

from alice_nnunet.trainers.alice_trainer import AliceTrainer


class AliceScratchTrainer(AliceTrainer):
    """AliceTrainer with random weights: same network, plans and recipe, and nothing is loaded."""

    def load_weights(self) -> list[str]:
        return ["Random: all tensors, no weights are loaded (AliceScratchTrainer)"]
