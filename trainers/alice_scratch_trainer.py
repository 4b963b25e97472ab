"""The honest baseline of AliceTrainer."""

# By its module: nnU-Net takes the first file in which it sees a class of the name that it searches,
# and would find AliceTrainer here.
from alice_nnunet.trainers import alice_trainer


class AliceScratchTrainer(alice_trainer.AliceTrainer):
    """AliceTrainer with random weights: same network, plans and recipe, and nothing is loaded."""

    def load_weights(self) -> list[str]:
        return ["Random: all tensors, no weights are loaded (AliceScratchTrainer)"]
