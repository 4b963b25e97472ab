"""Fine-tuning of a pretrained encoder inside nnU-Net."""

import dataclasses
import os
from pathlib import Path

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.file_path_utilities import get_output_folder
from torch import nn
from torch._dynamo import OptimizedModule
from torch.optim import Optimizer

from alice_nnunet.datasets.checked_reader import TRAINING, check_what_is_read
from alice_nnunet.errors import UserError, exit_on_user_error
from alice_nnunet.finetuning.augmentation import with_probabilities
from alice_nnunet.finetuning.block import block_of_plans
from alice_nnunet.finetuning.checks import (
    block_from_variable,
    check_preprocessed,
    check_same_run,
    check_variable,
    find_block,
    starting_weights,
)
from alice_nnunet.finetuning.finite_loss import check_loss
from alice_nnunet.finetuning.network import build_network, load_encoder
from alice_nnunet.finetuning.nnunet_plans import configuration_of
from alice_nnunet.finetuning.optimizers import (
    build_optimizer,
    encoder_depths,
    group_rates,
    parameter_groups,
)
from alice_nnunet.finetuning.seeded_loading import batch_processes, seed_generators, seeded
from alice_nnunet.schedules import EpochSchedule
from alice_nnunet.settings.device import cpu_has_bf16, keep_to_omp_num_threads


class AliceTrainer(nnUNetTrainer):
    """Train the network, weights and recipe of the plans' alice block (Alice, Table 8).

    alice-plan writes the block, for any of the encoders. Stock plans get it from the weights in the
    environment variable alice_weights when a training starts. Either way nnU-Net saves it with the
    plans of the model, so --c, --val and prediction need neither weights nor variable. Errors that
    a user can fix end in one line and exit code 2.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ):
        self.planned = "alice" in plans
        self.going_on = plans["continue_training"]

        with exit_on_user_error("nnUNetv2_train"):
            entries = configuration_of(plans, configuration)
            dataset = plans["dataset_name"]
            results = get_output_folder(
                dataset, type(self).__name__, plans["plans_name"], configuration
            )
            cases = Path(nnUNet_preprocessed) / dataset / entries["data_identifier"]
            self.block, lines = find_block(plans, entries, results, cases)

        if not self.planned:
            plans["alice"] = self.block.as_entries()
        super().__init__(plans, configuration, fold, dataset_json, device)
        setattr(self.plans_manager, TRAINING, True)

        recipe = self.recipe = self.block.recipe
        self.initial_lr = recipe.learning_rate
        self.weight_decay = recipe.weight_decay
        self.num_epochs = recipe.epochs
        self.warmup_epochs = recipe.warmup_epochs
        self.num_iterations_per_epoch = recipe.iterations_per_epoch
        self.num_val_iterations_per_epoch = recipe.val_iterations_per_epoch

        self.levels = self.block.output_levels
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
        """The network of the alice block with random weights, for training and prediction.

        In prediction, the plans get a reader that checks scans before they are segmented. Both keep
        to OMP_NUM_THREADS, which nnU-Net's commands do not.
        """
        keep_to_omp_num_threads()
        check_what_is_read(plans_manager)
        with exit_on_user_error("AliceTrainer"):
            return build_network(
                block_of_plans(plans_manager.plans),
                num_input_channels,
                num_output_channels,
                enable_deep_supervision,
            )

    def configure_optimizers(self) -> tuple[Optimizer, EpochSchedule]:
        """The recipe's optimizer, with a parameter group for each learning rate.

        The first group, whose rate nnU-Net logs, is the decoder's. A subclass may have changed the
        attributes that nnU-Net's trainer has for some entries of the recipe.
        """
        recipe = dataclasses.replace(
            self.recipe,
            learning_rate=self.initial_lr,
            weight_decay=self.weight_decay,
            epochs=self.num_epochs,
            warmup_epochs=self.warmup_epochs,
        )
        groups = parameter_groups(
            self.network.named_parameters(),
            encoder_depths(self.block.origin.arguments),
            recipe.layer_decay,
            recipe.frozen_epochs,
        )

        optimizer = build_optimizer(groups, recipe)
        return optimizer, EpochSchedule(optimizer, group_rates(groups, recipe))

    def initialize(self) -> None:
        """nnU-Net's; with a seed in the recipe the random weights are always the same."""
        if self.recipe.seed is not None:
            seed_generators(self.recipe.seed)
        super().initialize()
        self.compute_in(self.recipe.precision)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """nnU-Net's; without mirroring in training there is none in prediction."""
        rotation, two_dimensional, patch_size, axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if not self.recipe.augmentation["mirroring"]:
            axes = None
            self.inference_allowed_mirroring_axes = None
        return rotation, two_dimensional, patch_size, axes

    def get_training_transforms(self, *arguments, **named) -> BasicTransform:
        """nnU-Net's, with the probabilities of the recipe."""
        return with_probabilities(
            super().get_training_transforms(*arguments, **named),
            self.recipe.augmentation,
            self.block.input["scale"],
        )

    def get_dataloaders(self) -> tuple:
        """nnU-Net's; with a seed in the recipe their batches are always the same."""
        if self.recipe.seed is None:
            return super().get_dataloaders()

        with batch_processes("0"):
            training, validation = super().get_dataloaders()

        seed = (self.recipe.seed, self.current_epoch, self.local_rank)
        seed_generators(*seed)

        workers = get_allowed_n_proc_DA()
        validation_workers = -(-workers // 2)  # half as many, rounded up, as in nnU-Net
        pin_memory = self.device.type == "cuda"
        return (
            seeded(training, workers, pin_memory, *seed, 0),
            seeded(validation, validation_workers, pin_memory, *seed, 1),
        )

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        """Each output is half as fine as the one before, whatever the strides in the plans are."""
        if not self.enable_deep_supervision:
            return None
        return [[0.5**level] * 3 for level in range(self.levels)]

    def _build_loss(self) -> nn.Module:
        """nnU-Net's loss; each output counts half as much as the one before.

        For three outputs the weights are 4/7, 2/7 and 1/7 (nnFormer).
        """
        loss = super()._build_loss()
        if self.enable_deep_supervision:
            total = 2**self.levels - 1
            loss.weight_factors = tuple(
                2 ** (self.levels - 1 - level) / total for level in range(self.levels)
            )
        return loss

    def _do_i_compile(self) -> bool:
        """Compile networks with windows only if nnUNet_compile asks for it.

        Their attention consists of many small calls: nnFormer at the paper's
        size was still compiling after 80 s on an H200.
        """
        has_windows = self.block.origin.name != "vit"
        return super()._do_i_compile() and ("nnUNet_compile" in os.environ or not has_windows)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """For --c and --val; refuses checkpoints that were trained with other plans."""
        with exit_on_user_error("nnUNetv2_train"):
            check_same_run(self.block, self.output_folder_base, going_on=True)
        super().load_checkpoint(filename_or_checkpoint)
        self.compute_in(self.my_init_kwargs.get("precision", self.recipe.precision))

    def compute_in(self, precision: str) -> None:
        """On a CPU, settle whether the network computes in fp32 or bf16, and record it for --c.

        Args:
            precision: auto, fp32 or bf16.
        """
        if self.device.type != "cpu":
            return

        has_bf16 = cpu_has_bf16()
        if precision == "auto":
            precision = "bf16" if has_bf16 else "fp32"
        self.my_init_kwargs["precision"] = precision  # nnU-Net saves them in each checkpoint
        network = self.plain_network()
        network.half_on_cpu = precision == "bf16"  # type: ignore[assignment]  # torch: tensors only

        if precision == "bf16" and not has_bf16:
            self.print_to_log_file(
                "WARNING: this CPU has no bf16 (neither AVX512-BF16 nor AMX) and emulates it, "
                "several times slower than fp32. Go on where a CPU has it, or plan a new training "
                "with alice-plan --set precision=fp32"
            )

    def on_train_start(self) -> None:
        """Before the first epoch: refuse to mix two trainings, then load the pretrained weights."""
        if self.current_epoch == 0:
            with exit_on_user_error("nnUNetv2_train"):
                self.check_new_training()
                self.initialize()
                for line in self.load_weights():
                    self.print_to_log_file(line)
        super().on_train_start()

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's; ends the training if the loss is not finite."""
        result = super().train_step(batch)
        self.check_finite(result, batch, "training step")
        return result

    def validation_step(self, batch: dict) -> dict:
        """nnU-Net's; ends the training, before a checkpoint, if the loss is not finite."""
        result = super().validation_step(batch)
        self.check_finite(result, batch, "validation step")
        return result

    def check_finite(self, result: dict, batch: dict, step: str) -> None:
        """Exit with code 2 and the names of the batch's cases if a loss is not finite."""
        with exit_on_user_error("nnUNetv2_train"):
            check_loss(
                result["loss"],
                list(batch.get("keys", ())),
                f"{step} in epoch {self.current_epoch}",
                Path(self.output_folder),
                Path(self.preprocessed_dataset_folder),
            )

    def check_new_training(self) -> None:
        """Check that a training may start.

        Raises:
            UserError: there are no cases, nnU-Net was given other weights to start from, or the
                results folder holds trainings of other weights, network or recipe.
        """
        # before a first epoch the network exists only with -pretrained_weights
        if self.was_initialized:
            raise UserError(
                f"-pretrained_weights cannot be used with {type(self).__name__}: AliceTrainer "
                f"starts from the weights that the plans name, AliceScratchTrainer from none; "
                f"leave it out"
            )

        plans = self.plans_manager.plans
        check_preprocessed(self.preprocessed_dataset_folder, plans, self.configuration_name)

        block = self.block
        if self.planned:
            check_variable(block, plans)
        elif not self.going_on:
            # The block may be an earlier training's: compare it with what is asked for now. Its
            # network and its precision, which follow from the weights and the version, stay.
            asked, _ = block_from_variable(
                plans, self.configuration_manager.configuration, self.preprocessed_dataset_folder
            )
            recipe = dataclasses.replace(asked.recipe, precision=block.recipe.precision)
            block = dataclasses.replace(
                asked, network_arguments=block.network_arguments, recipe=recipe
            )
        check_same_run(block, self.output_folder_base, going_on=False)

    def load_weights(self) -> list[str]:
        """Load the pretrained encoder into the network. Returns lines for the log."""
        encoder = starting_weights(self.block)
        return load_encoder(self.plain_network(), encoder, self.block.other_channels)

    def plain_network(self) -> nn.Module:
        """The network without the wrappers that nnU-Net adds."""
        network = self.network.module if self.is_ddp else self.network
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Return several outputs or only the finest; networks with one output ignore it."""
        if self.enable_deep_supervision:
            network = self.plain_network()
            network.deep_supervision = enabled  # type: ignore[assignment]  # torch: tensors only
