"""What a stage is: the contract between the two stages and all that trains, scores and keeps them.

Legend: B batch, C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor, nn

from data import DatasetConfig, ImageDataset
from runtime.precision import Precision
from scoring.scoring_data import ScoringData
from training.experiment import ExperimentConfig
from training.optimization.optimizer import OptimizerConfig

Batch = dict[str, Tensor]
OnSkip = Callable[[int, Mapping[str, float]], None]
"""Told the step and the non-finite numbers of a step that was left out, on every rank."""
SnapshotWeights = tuple[dict[str, Tensor], dict[str, Tensor] | None]
"""Raw weights, and averaged ones where they are kept."""


def tell_nobody(step: int, terms: Mapping[str, float]) -> None:
    """An `OnSkip` that keeps it to itself."""


class RunConfig(Protocol):
    """The sections that the YAML files of both stages have."""

    dataset: DatasetConfig
    optimizer: OptimizerConfig
    experiment: ExperimentConfig
    seed: int
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def completed(self: Config) -> Config:
        """With what the checkpoints that it names say, where the file leaves that open."""

    def fitted_to(self: Config, dataset: ImageDataset) -> Config:
        """With what the training split says, where the file leaves that open."""


Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True)
class Part:
    """One of the networks of a stage; `optimizer` is what trains it, None for one that is frozen."""

    module: nn.Module
    optimizer: OptimizerConfig | None


class Stateful(Protocol):
    """What a checkpoint holds."""

    def state_dict(self) -> Any:
        """Tensors and plain values, nested."""

    def load_state_dict(self, state: Any) -> Any:
        """Restores what `state_dict` gave."""


class Stage(Protocol):
    """A model with everything that trains it. Built from `(config, plan, env)`; `Stage1` and `Stage2` are the two.

    Attributes:
        name: what snapshots call it.
        score_kind: `rfid` or `fid`, the first part of the name of its in-loop score.
        score_split: the split that the score compares with.
    """

    name: str
    score_kind: str
    score_split: str

    @property
    def config(self) -> RunConfig:
        """The experiment with everything filled in that the file left open."""

    @property
    def precision(self) -> Precision:
        """What its forward passes run in."""

    @property
    def keeps_average(self) -> bool:
        """Whether it has averaged weights beside the raw ones."""

    def check_data(self, dataset: ImageDataset) -> None:
        """ValueError when it cannot be trained on this data set."""

    def load_weights(self, path: Path) -> None:
        """Starts from trained weights: finetuning, evaluation."""

    def describe(self) -> str:
        """One line on what is trained."""

    def parts(self) -> dict[str, Part]:
        """Its networks by name, on this rank."""

    def codes(self, batch: Batch) -> Tensor | None:
        """The nearest codes (B, H, W, D) of a batch; None of a model that has none."""

    def trial_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one micro-batch with its graph, and its terms, for a look at them.

        Codebooks may change as in training: whoever goes on to train must not ask for it.
        """

    def provenance(self) -> dict[str, Any]:
        """What identifies the run's data and inputs; a resumed run must have the same."""

    def train_step(self, micro_batches: Iterable[Batch], step: int, on_skip: OnSkip = tell_nobody) -> dict[str, Tensor]:
        """One optimizer step over `plan.accumulation` micro-batches, read one at a time.

        Returns:
            Named scalars that still live on the device.
        """

    def window_metrics(self) -> dict[str, Any]:
        """Statistics gathered since the last call: numbers, or lists with one per depth; equal on every rank."""

    def averaged(self) -> AbstractContextManager[None]:
        """Context with the averaged weights in place; does nothing where none are kept."""

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, Any]:
        """Metrics of this rank's share of a split with the weights in place, equal on every rank."""

    def pictures(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Named image grids, uint8 (C, H, W), with the weights in place; empty on all but the main process.

        Args:
            batches: of the validation split; only as many are read as are shown.
        """

    def images_to_score(self, data: ScoringData, num_images: int) -> Iterator[Batch]:
        """This rank's share of exactly `num_images` uint8 images (B, C, H, W), with the weights in place."""

    def objects(self) -> dict[str, Stateful]:
        """Everything that a resumed run needs, by name; schedules and random states are derived, not stored."""

    def snapshot(self) -> SnapshotWeights:
        """The weights in the form that users load, empty on all but the main process; every rank must call it."""

    def snapshot_facts(self, dataset: ImageDataset) -> dict[str, Any]:
        """What the metadata of a snapshot say of the images that it was trained on."""

    def snapshot_files(self, dataset: ImageDataset) -> dict[str, str]:
        """File name -> text of what else belongs to the trained model."""
