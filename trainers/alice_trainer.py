"""Fine-tuning of a pretrained encoder inside nnU-Net."""

import os

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.file_path_utilities import get_output_folder
from torch import nn
from torch._dynamo import OptimizedModule
from torch.optim import Optimizer

from alice_nnunet.finetuning.augmentation import with_probabilities
from alice_nnunet.finetuning.seeded_loading import no_workers, seed_generators, seeded
from alice_nnunet.errors import UserError, exit_on_user_error
from alice_nnunet.finetuning.network import build_network, load_encoder, output_levels
from alice_nnunet.finetuning.optimizers import (
    build_optimizer,
    encoder_depths,
    group_rates,
    parameter_groups,
)
from alice_nnunet.planning.plans import configuration_of
from alice_nnunet.finetuning.recipes import full_recipe
from alice_nnunet.schedules import EpochSchedule
from alice_nnunet.finetuning.checks import (
    block_from_variable,
    block_of_plans,
    check_preprocessed,
    check_same_run,
    check_variable,
    find_block,
    starting_weights,
)


class AliceTrainer(nnUNetTrainer):
    """The network, weights and recipe of the plans' alice block (Alice, Table 8), whichever encoder it names.

    alice-plan writes the block. Stock plans get it from the checkpoint in the environment variable alice_weights when
    a training starts. Either way nnU-Net saves it with the plans of the model, so --c, --val and prediction need
    neither checkpoint nor variable. What a user can mend ends in one line and exit code 2.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),
    ):
        self.planned, self.going_on = "alice" in plans, plans["continue_training"]
        with exit_on_user_error("nnUNetv2_train"):
            entries = configuration_of(plans, configuration)
            results = get_output_folder(
                plans["dataset_name"], type(self).__name__, plans["plans_name"], configuration
            )
            cases = os.path.join(
                nnUNet_preprocessed, plans["dataset_name"], entries["data_identifier"]
            )
            plans["alice"], lines = find_block(plans, entries, results, cases)
        super().__init__(plans, configuration, fold, dataset_json, device)
        recipe = self.recipe = full_recipe(plans["alice"]["recipe"])
        self.initial_lr, self.weight_decay = recipe["learning_rate"], recipe["weight_decay"]
        self.num_epochs, self.warmup_epochs = recipe["epochs"], recipe["warmup_epochs"]
        self.num_iterations_per_epoch = recipe["iterations_per_epoch"]
        self.num_val_iterations_per_epoch = recipe["val_iterations_per_epoch"]
        self.levels = output_levels(plans["alice"])
        self.enable_deep_supervision = self.levels > 1
        for line in lines:
            self.print_to_log_file(line)

    @staticmethod
    def build_network_architecture(
        plans_manager,
        configuration_manager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        """The network of the alice block, random weights. nnU-Net calls this in training and in prediction."""
        with exit_on_user_error("AliceTrainer"):
            return build_network(
                block_of_plans(plans_manager.plans),
                num_input_channels,
                num_output_channels,
                enable_deep_supervision,
            )

    def configure_optimizers(self) -> tuple[Optimizer, EpochSchedule]:
        """The recipe's, with a group of parameters for each learning rate; the first one, which nnU-Net logs, is the decoder's."""
        recipe = self.recipe | {
            "learning_rate": self.initial_lr,
            "weight_decay": self.weight_decay,
            "epochs": self.num_epochs,
            "warmup_epochs": self.warmup_epochs,
        }
        groups = parameter_groups(
            self.network.named_parameters(),
            encoder_depths(self.plans_manager.plans["alice"]["encoder_arguments"]),
            recipe["layer_decay"],
            recipe["frozen_epochs"],
        )
        optimizer = build_optimizer(groups, recipe)
        return optimizer, EpochSchedule(optimizer, group_rates(groups, recipe))

    def initialize(self) -> None:
        """With the recipe's seed, the random weights are always the same."""
        if self.recipe["seed"] is not None:
            seed_generators(self.recipe["seed"])
        super().initialize()

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """nnU-Net's; without mirroring in training there is none in prediction."""
        rotation, two_dimensional, patch_size, axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if not self.recipe["augmentation"]["mirroring"]:
            self.inference_allowed_mirroring_axes = axes = None
        return rotation, two_dimensional, patch_size, axes

    def get_training_transforms(self, *arguments, **named) -> BasicTransform:
        """nnU-Net's, with the probabilities of the recipe."""
        return with_probabilities(
            super().get_training_transforms(*arguments, **named),
            self.recipe["augmentation"],
            self.plans_manager.plans["alice"]["input"]["scale"],
        )

    def get_dataloaders(self) -> tuple:
        """nnU-Net's; with the recipe's seed, their batches are always the same."""
        if self.recipe["seed"] is None:
            return super().get_dataloaders()
        with no_workers():
            loaders = super().get_dataloaders()
        workers, seed = (
            get_allowed_n_proc_DA(),
            (self.recipe["seed"], self.current_epoch, self.local_rank),
        )
        seed_generators(*seed)
        return tuple(
            seeded(loader, count, self.device.type == "cuda", *seed, part)
            for part, (loader, count) in enumerate(zip(loaders, (workers, -(-workers // 2))))
        )

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        """Each output is half as fine as the one before, whatever the strides in the plans are."""
        return (
            [[0.5**level] * 3 for level in range(self.levels)]
            if self.enable_deep_supervision
            else None
        )

    def _build_loss(self) -> nn.Module:
        """nnU-Net's loss; each output counts half as much as the one before, 4/7, 2/7 and 1/7 for three (nnFormer)."""
        loss = super()._build_loss()
        if self.enable_deep_supervision:
            loss.weight_factors = tuple(
                2 ** (self.levels - 1 - level) / (2**self.levels - 1)
                for level in range(self.levels)
            )
        return loss

    def _do_i_compile(self) -> bool:
        """Networks with windows are compiled only where nnUNet_compile asks for it: their attention comes in many small
        calls, which nobody has measured compiled yet."""
        windows = self.plans_manager.plans["alice"]["encoder"] != "vit"
        return super()._do_i_compile() and ("nnUNet_compile" in os.environ or not windows)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """--c and --val: never into the network of other plans than those the checkpoint was trained with."""
        with exit_on_user_error("nnUNetv2_train"):
            check_same_run(
                self.plans_manager.plans["alice"], self.output_folder_base, going_on=True
            )
        super().load_checkpoint(filename_or_checkpoint)

    def on_train_start(self) -> None:
        """Before the first epoch, and only then: refuse to mix two trainings, then load the pretrained weights."""
        if self.current_epoch == 0:
            with exit_on_user_error("nnUNetv2_train"):
                self.check_new_training()
                self.initialize()
                for line in self.load_weights():
                    self.print_to_log_file(line)
        super().on_train_start()

    def check_new_training(self) -> None:
        """Raise UserError if there is nothing to train on, if nnU-Net was given other weights to start from, or if the results
        folder holds trainings of other weights, network or recipe."""
        if self.was_initialized:  # before a first epoch only for -pretrained_weights
            raise UserError(
                f"-pretrained_weights cannot be used with {type(self).__name__}: AliceTrainer starts from the weights that the "
                f"plans name, AliceScratchTrainer from none; leave it out"
            )
        check_preprocessed(
            self.preprocessed_dataset_folder, self.plans_manager.plans, self.configuration_name
        )
        block = self.plans_manager.plans["alice"]
        if self.planned:
            check_variable(block, self.plans_manager.plans)
        if (
            not self.planned and not self.going_on
        ):  # the block may be an earlier training's: what is asked for now?
            block, _ = block_from_variable(
                self.plans_manager.plans,
                self.configuration_manager.configuration,
                self.preprocessed_dataset_folder,
            )
        check_same_run(block, self.output_folder_base, going_on=False)

    def load_weights(self) -> list[str]:
        """Load the pretrained encoder into the network. Returns lines for the log."""
        block = self.plans_manager.plans["alice"]
        return load_encoder(
            self.plain_network(),
            block["encoder"],
            starting_weights(block),
            block["weights"],
            block["weights_sha256"],
            block.get("other_channels", ()),
        )

    def plain_network(self) -> nn.Module:
        """The network without what nnU-Net wraps around it."""
        network = self.network.module if self.is_ddp else self.network
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Several outputs or only the finest; nothing to switch for networks that have one."""
        if self.enable_deep_supervision:
            self.plain_network().deep_supervision = enabled
