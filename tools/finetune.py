"""Fine-tune a model while it merges, so that it gets back what merging alone loses.

    python tools/finetune.py deit_s --preset a3-3.19 --images imagenet --out build/deit_s-tuned
    torchrun --nproc-per-node 8 tools/finetune.py deit_s --preset a3-3.19 --images imagenet

The recipe of arXiv 2505.15160: 30 epochs, batches of 256 to 1024 in all, no warm-up, a cosine from
2e-5 to 3e-6, and all else as the model was trained: for DeiT AdamW, weight decay 0.05, RandAugment,
random erasing, Mixup and CutMix, label smoothing 0.1, stochastic depth 0.1, and each image three
times. --images holds train and val, each with a folder for every class. After each epoch its
weights, the optimizer and the accuracy on val are in --out; the same command goes on from there.
`weights.safetensors` is what `atm-export MODEL --weights FILE` takes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from finetune_data import Images, Rank, held_out, open_images, training_batches
from safetensors.torch import save
from timm.data import Mixup
from timm.layers import DropPath
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import distributed, nn

from atm_export import loose_files, place
from atm_export.choice import Choice
from atm_export.errors import AtmExportError, ConfigError, OutputError
from atm_export.model.backbone import LoadedModel
from atm_export.model.merged_model import MergedModel
from atm_export.model.zoo import load_model
from atm_export.prove.intervals import share_facts
from atm_export.resolving import resolve
from atm_export.runs.writing import versions

STATE, WEIGHTS, RESULT = "state.pt", "weights.safetensors", "finetune.json"
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Recipe:
    """How it is trained. batch: images of all processes; drop_path: of the last block, and less in
    those before."""

    epochs: int
    batch: int
    lr: float
    min_lr: float
    weight_decay: float
    drop_path: float
    smoothing: float
    augment: str
    repeats: int
    precision: str
    seed: int


@dataclass
class Training:
    """A model on its way: what is trained, and how far it is. epochs: a row for each."""

    loaded: LoadedModel
    model: MergedModel
    recipe: Recipe
    rank: Rank
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    start: dict[str, Any] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def plain(self) -> nn.Module:
        """The model with its weights' own names."""
        return self.model.unmerged()


def main() -> int:
    args = _arguments()
    try:
        with processes(args.device) as (rank, device):
            run(args, rank, device)
    except AtmExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("model", help="a name of `atm-export list`, or timm:NAME")
    add("--images", type=Path, required=True, help="a folder with train and val")
    add("--out", type=Path, required=True)
    add("--weights", default="pretrained", help="as in atm-export")
    add("--preset", help="as in atm-export")
    add("--method", help="as in atm-export")
    add("--set", action="append", default=[], help="NAME=VALUE, as in atm-export")
    add("--epochs", type=int, default=30)
    add("--batch", type=int, default=1024, help="images a step, over all processes (1024)")
    add("--lr", type=float, default=2e-5)
    add("--min-lr", type=float, default=3e-6)
    add("--weight-decay", type=float, default=0.05)
    add("--drop-path", type=float, default=0.1)
    add("--smoothing", type=float, default=0.1)
    add("--augment", choices=("deit", "none"), default="deit")
    add("--repeats", type=int, default=3, help="times that an image is drawn with another look (3)")
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of autocast")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=0, help="processes that decode, for each that trains")
    add("--device", default="auto", help="auto, cpu, cuda")
    return parser.parse_args()


@contextmanager
def processes(device: str) -> Iterator[tuple[Rank, torch.device]]:
    """Which of the processes of torchrun this is, and where it computes."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    rank = Rank(int(os.environ.get("RANK", "0")), count)
    cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no GPU")
    where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else "cpu"
    if count > 1:
        distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield rank, torch.device(where)
    finally:
        if count > 1:
            distributed.destroy_process_group()


def run(args: argparse.Namespace, rank: Rank, device: torch.device) -> None:
    """Train what is left, and write after each epoch."""
    recipe = Recipe(**{name: getattr(args, name) for name in Recipe.__dataclass_fields__})
    _check(recipe, rank)
    place.refuse_loss(args.out, [STATE, WEIGHTS, RESULT])
    choice = Choice(
        model=args.model,
        weights=args.weights,
        preset=args.preset,
        method=args.method,
        settings=tuple(args.set),
    )
    training = prepared(choice, recipe, rank, device)
    train = open_images(training.loaded, args.images / "train", recipe.augment == "deit")
    val = open_images(training.loaded, args.images / "val", False)
    key = _key(choice, recipe, train, val, training)
    found = _resumed(training, args.out, key)
    if not found:
        training.start = {
            "unmerged": accuracy(training, training.plain, val),
            "merged": accuracy(training, training.model, val),
        }
        _say(training, f"before: {_points(training.start)}")
    for epoch in range(len(training.epochs), recipe.epochs):
        loss = one_epoch(training, train, epoch, args.workers)
        top1 = accuracy(training, training.model, val)
        training.epochs.append({"epoch": epoch + 1, "loss": loss, "merged": top1})
        points = _points({"merged": top1})
        _say(training, f"epoch {epoch + 1} of {recipe.epochs}: loss {loss:.4f}, {points}")
        if rank.index == 0:
            loose_files.put_files(args.out, _files(training, choice, key))
    _say(training, f"{args.out / WEIGHTS}: give it to atm-export {args.model} --weights")


def _check(recipe: Recipe, rank: Rank) -> None:
    if recipe.epochs < 1 or recipe.repeats < 1:
        raise ConfigError("--epochs and --repeats are at least 1")
    if not 0 < recipe.min_lr <= recipe.lr:
        raise ConfigError(f"--lr {recipe.lr:g} falls to --min-lr {recipe.min_lr:g}: both above 0")
    if recipe.batch < 2 * rank.count or recipe.batch % (2 * rank.count):
        raise ConfigError(f"--batch {recipe.batch}: each of {rank.count} takes an even number")


def prepared(choice: Choice, recipe: Recipe, rank: Rank, device: torch.device) -> Training:
    """The model with all that it is trained by, at its beginning."""
    config = resolve(choice)
    loaded = load_model(config.model)
    plain = loaded.backbone.model.to(device)
    model = MergedModel(plain, loaded.backbone, config.method)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name not in loaded.backbone.fixed)
    _drop_paths(plain, recipe.drop_path)
    optimizer = create_optimizer_v2(
        plain, opt="adamw", lr=recipe.lr, weight_decay=recipe.weight_decay
    )
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
    return Training(loaded, model, recipe, rank, optimizer, scaler, device)


def _drop_paths(model: Any, rate: float) -> None:
    """Stochastic depth, rising from block to block as timm builds it."""
    blocks = list(model.blocks)
    for i, block in enumerate(blocks):
        for name in ("drop_path1", "drop_path2"):
            if rate and hasattr(block, name):
                setattr(block, name, DropPath(rate * i / max(len(blocks) - 1, 1)))


def one_epoch(training: Training, images: Images, epoch: int, workers: int) -> float:
    """Train on all images once; the mean loss."""
    recipe, rank, model = training.recipe, training.rank, training.model
    schedule = CosineLRScheduler(training.optimizer, recipe.epochs, lr_min=recipe.min_lr)
    schedule.step(epoch)
    batches = training_batches(
        images,
        recipe.batch // rank.count,
        repeats=recipe.repeats if recipe.augment == "deit" else 1,
        rank=rank,
        seed=recipe.seed,
        epoch=epoch,
        workers=workers,
    )
    mix = Mixup(0.8, 1.0, label_smoothing=recipe.smoothing, num_classes=_classes(training))
    step = _in_parallel(training, model.train())
    total, count = 0.0, 0
    for image, right in batches:
        image, right = image.to(training.device), right.to(training.device)
        if recipe.augment == "deit":
            image, right = mix(image, right)
        with _autocast(training):
            loss = F.cross_entropy(step(image), right, label_smoothing=_smoothing(recipe))
        training.optimizer.zero_grad()
        training.scaler.scale(loss).backward()
        training.scaler.step(training.optimizer)
        training.scaler.update()
        total, count = total + loss.item(), count + 1
        _say(training, f"epoch {epoch + 1}: {count} of {len(batches)}", lasting=False)
    if total != total:
        raise ConfigError("the loss is no number; a lower --lr, or --precision fp32")
    return total / count


def _smoothing(recipe: Recipe) -> float:
    """Mixed labels are smooth already."""
    return 0.0 if recipe.augment == "deit" else recipe.smoothing


def _classes(training: Training) -> int:
    return training.loaded.backbone.classes


def _in_parallel(training: Training, model: MergedModel) -> nn.Module:
    if training.rank.count == 1:
        return model
    ids = None if training.device.type == "cpu" else [training.device.index]
    # An auxiliary head may be left unread where tokens merge.
    unread = hasattr(training.plain, "aux_head")
    return nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=unread)


def _autocast(training: Training) -> torch.autocast:
    kind = AUTOCAST.get(training.recipe.precision)
    return torch.autocast(training.device.type, kind, enabled=kind is not None)


@torch.inference_mode()
def accuracy(training: Training, model: nn.Module, images: Images) -> dict[str, Any]:
    """Top-1 on all images, each process on its own."""
    model.eval()
    hits = torch.zeros(2, dtype=torch.int64)
    batch = max(training.recipe.batch // training.rank.count, 1)
    for image, right in held_out(images, batch, training.rank):
        best = model(image.to(training.device)).argmax(dim=1).cpu()
        hits += torch.tensor([int((best == right).sum()), len(right)])
    if training.rank.count > 1:
        hits = hits.to(training.device)
        distributed.all_reduce(hits)
    return share_facts(int(hits[0]), int(hits[1]))


def _key(choice: Choice, recipe: Recipe, train: Images, val: Images, training: Training) -> str:
    """What must be the same where a training goes on."""
    told = {
        "choice": asdict(choice),
        "recipe": asdict(recipe),
        "weights": training.loaded.weights["sha256"],
        "images": [train.samples.listing(), val.samples.listing()],
        "processes": training.rank.count,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _resumed(training: Training, out: Path, key: str) -> bool:
    """Take up the state in `out`, where there is one."""
    if not (out / STATE).is_file():
        return False
    state = torch.load(out / STATE, map_location=training.device, weights_only=True)
    if state["key"] != key:
        raise OutputError(
            f"{out} holds another training (other settings, images, weights or processes); "
            "choose another --out, or remove it"
        )
    training.plain.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.scaler.load_state_dict(state["scaler"])
    training.start, training.epochs = state["start"], state["epochs"]
    _say(training, f"going on after epoch {len(training.epochs)}")
    return True


def _files(training: Training, choice: Choice, key: str) -> dict[str, bytes]:
    weights = {name: t.detach().cpu() for name, t in training.plain.state_dict().items()}
    state = {
        "key": key,
        "model": weights,
        "optimizer": training.optimizer.state_dict(),
        "scaler": training.scaler.state_dict(),
        "start": training.start,
        "epochs": training.epochs,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    result = {
        "model": choice.model,
        "method": training.model.method.model_dump(mode="json"),
        "recipe": asdict(training.recipe),
        "start": training.start,
        "epochs": training.epochs,
        "versions": versions(),
    }
    text = json.dumps(result, indent=1) + "\n"
    kept = {name: t.contiguous() for name, t in weights.items()}
    return {WEIGHTS: save(kept), RESULT: text.encode(), STATE: buffer.getvalue()}


def _points(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {one['percent']:.2f} %" for name, one in found.items())


def _say(training: Training, text: str, lasting: bool = True) -> None:
    if training.rank.index == 0 and (lasting or sys.stderr.isatty()):
        print(text, end="\n" if lasting else "\r", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
