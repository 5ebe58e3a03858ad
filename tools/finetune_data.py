"""What `finetune.py` reads: images of the ImageNet layout, as a baseline's recipe sees them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from atm_export.errors import ConfigError, DataError
from atm_export.inputs import RGB
from atm_export.measure.data.readers import read
from atm_export.measure.data.samples import Samples, open_samples
from atm_export.model.backbone import LoadedModel
from atm_export.pictures import read_rgb
from atm_export.preprocess import crop


@dataclass(frozen=True)
class Rank:
    """Which of `count` processes this one is."""

    index: int = 0
    count: int = 1


class Images(Dataset[tuple[Tensor, int]]):
    """Normalised images [C, H, W] and their classes; augment: as DeiT is trained."""

    def __init__(self, samples: Samples, model: LoadedModel, augment: bool) -> None:
        self.samples, self.model = samples, model
        self.transform = _augmentation(model) if augment else None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            image = read_rgb(read(self.samples.reader, index))
        except (OSError, DataError) as error:
            raise DataError(f"cannot read image {self.samples.name(index)}: {error}") from error
        (right,) = self.samples.right[index]
        if self.transform is not None:
            return self.transform(image), right
        return self.model.tensor(crop(image, self.model.preprocessing)[None])[0], right


def open_images(model: LoadedModel, folder: Path, augment: bool) -> Images:
    """The labelled images of a folder of class folders (or archives); DataError if there are
    none."""
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; --images takes one that holds train and val")
    samples = open_samples(str(folder), model.backbone.classes, model.labels)
    return Images(samples, model, augment)


def _augmentation(model: LoadedModel) -> Any:
    """RandAugment and random erasing as in DeiT (arXiv 2012.12877, table 9)."""
    how = model.preprocessing
    if how.channels != RGB or how.size[0] != how.size[1]:
        raise ConfigError("--augment deit is for square colour images; give --augment none")
    return create_transform(
        how.size[0],
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation=how.interpolation,
        re_prob=0.25,
        re_mode="pixel",
        mean=how.mean,
        std=how.std,
    )


def training_batches(
    images: Images, batch: int, *, repeats: int, rank: Rank, seed: int, epoch: int, workers: int
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches of `batch` images of this process in an epoch, which depend on nothing else."""
    _seed(seed, epoch, rank)
    kind = {"num_replicas": rank.count, "rank": rank.index}
    sampler: Any = (
        RepeatAugSampler(images, num_repeats=repeats, **kind)
        if repeats > 1
        else DistributedSampler(images, seed=seed, **kind)
    )
    sampler.set_epoch(epoch)
    if len(sampler) < batch:
        raise DataError(f"{len(sampler)} images for each process are no batch of {batch}")
    return DataLoader(
        images,
        batch,
        sampler=sampler,
        num_workers=workers,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed + epoch),
        worker_init_fn=_seed_worker,
    )


def held_out(images: Images, batch: int, rank: Rank) -> Iterator[tuple[Tensor, Tensor]]:
    """All images once, those of this process, in order."""
    own = torch.utils.data.Subset(images, range(rank.index, len(images), rank.count))
    yield from DataLoader(own, batch)


def _seed(seed: int, epoch: int, rank: Rank) -> None:
    """What augmentation, mixing and dropout draw from."""
    number = (seed * 1_000_003 + epoch) * rank.count + rank.index
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def _seed_worker(_: int) -> None:
    number = torch.initial_seed() % 2**32
    random.seed(number)
    np.random.seed(number)
