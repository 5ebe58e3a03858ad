"""Train the small Vision Transformer that ships as the demo model.

What it makes
-------------
Three files, by default in ``build/demo-model/`` (they ship from ``atm_export/demo/``):

``weights.safetensors``
    The FP32 parameters under timm's own key names.  They load strictly into
    ``timm.models.vision_transformer.VisionTransformer(**card["architecture"])``.
``heldout.npz``
    ``images`` (uint8, [360, 8, 8]) and ``labels`` (int64, [360]): the digits the
    model never saw in training.
``card.json``
    Where the data come from, the architecture, the recipe, the input pipeline in
    words, and the held-out accuracy measured on the written weights.

The data
--------
scikit-learn's ``load_digits`` is 1797 real handwritten digits of 8x8 pixels (UCI
"Optical Recognition of Handwritten Digits").  It comes with scikit-learn, so nothing
is downloaded.  A fixed, stratified 360 of them are held out; ``--seed`` does not move
that split, so results of different seeds can be compared.

The model is shaped like a DeiT in miniature: a 56x56 input in patches of 4 gives 196
patch tokens and one class token, 197 in all, and twelve blocks.

How a CPU manages it in minutes
-------------------------------
The full token sequence is slow on two cores, so training drops random patch tokens
(timm's ``PatchDropout``): three quarters at first, half later, none in the last
epochs.  Training steps run under bfloat16 autocast; the stored parameters stay FP32.
Neither leaves a trace in the architecture, and held-out accuracy is always measured on
a plain FP32 model in eval mode with every token.  The weights written are those of
the last epoch: no epoch is picked by its held-out accuracy.

On two idle cores an epoch takes about 5 s at first and 17 s at the end, the default
run about three to four minutes; a busy machine can make that several times longer
(``OMP_WAIT_POLICY=passive`` in the environment then helps).  The split is the same on
every machine; the trained weights of a repeated run agree only where the processor and
the library versions do.

Examples
--------
A smoke test::

    python tools/train_demo.py --epochs 1 --out demo-smoke

The real run, and its files into the package::

    python tools/train_demo.py
    cp build/demo-model/* atm_export/demo/
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import safetensors.torch
import sklearn
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from atm_export.errors import OutputError
from atm_export.loose_files import put_files
from atm_export.place import refuse_loss

ARCHITECTURE: dict[str, Any] = {
    "img_size": 56,
    "patch_size": 4,
    "in_chans": 3,
    "num_classes": 10,
    "embed_dim": 64,
    "depth": 12,
    "num_heads": 4,
    "mlp_ratio": 3,
    "class_token": True,
    "global_pool": "token",
}
DEFAULT_OUT = Path("build") / "demo-model"
FILES = ("weights.safetensors", "heldout.npz", "card.json")
DEFAULT_EPOCHS = 24
DEFAULT_SEED = 0
SPLIT_SEED = 0
HELDOUT_SIZE = 360
BATCH_SIZE = 64
THREADS = 2
PEAK_LR = 1e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.05
WARMUP_FRACTION = 0.1
# (from this fraction of the epochs on, share of patch tokens dropped in training)
PATCH_DROP_STAGES = ((0.0, 0.75), (0.5, 0.5), (0.88, 0.0))


def load_split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return train images, train labels, held-out images, held-out labels (uint8, int64)."""
    digits = load_digits()
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    train_x, held_x, train_y, held_y = train_test_split(
        images, labels, test_size=HELDOUT_SIZE, stratify=labels, random_state=SPLIT_SEED
    )
    return train_x, train_y, held_x, held_y


def to_unit_tensor(images: np.ndarray) -> Tensor:
    """Turn uint8 8x8 images into [N, 3, 56, 56] floats in 0..1 (PIL, RGB, bicubic)."""
    side = ARCHITECTURE["img_size"]
    frames = [
        np.asarray(
            Image.fromarray(image)  # a 2-D uint8 array becomes mode "L"
            .convert("RGB")
            .resize((side, side), Image.Resampling.BICUBIC)
        )
        for image in images
    ]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255


def normalise(unit: Tensor) -> Tensor:
    """Map 0..1 to -1..1: the last step of the input pipeline."""
    return (unit - 0.5) / 0.5


def augment(unit: Tensor) -> Tensor:
    """Shift, rotate and scale each image a little and add faint noise (0..1 in and out)."""
    count = unit.shape[0]
    angle = (torch.rand(count) * 2 - 1) * math.radians(12)
    scale = 1 + (torch.rand(count) * 2 - 1) * 0.1
    shift = (torch.rand(count, 2) * 2 - 1) * 0.14  # of half the image width
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack(
        [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1
    )
    grid = functional.affine_grid(theta, list(unit.shape), align_corners=False)
    moved = functional.grid_sample(unit, grid, padding_mode="zeros", align_corners=False)
    return (moved + 0.04 * torch.randn_like(moved)).clamp(0, 1)


def sincos_positions(side: int, dim: int) -> Tensor:
    """Return [side * side, dim] two-dimensional sine and cosine position codes."""
    frequency = 1 / 100 ** (torch.arange(dim // 4) / (dim // 4))
    phase = torch.arange(side)[:, None] * frequency
    axis = torch.cat([phase.sin(), phase.cos()], 1)
    rows, columns = axis.repeat_interleave(side, 0), axis.repeat(side, 1)
    return torch.cat([rows, columns], 1)


@torch.no_grad()
def initialise(model: VisionTransformer) -> None:
    """Start from values that suit so narrow a network and so little data.

    timm's default, a standard deviation of 0.02, is meant for wide models: at width 64 the
    blocks hardly act at first, and the position embedding (which stays learned) starts as
    noise.  Xavier weights and sine-cosine positions save most of the epochs.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    nn.init.xavier_uniform_(model.patch_embed.proj.weight.flatten(1))
    side = ARCHITECTURE["img_size"] // ARCHITECTURE["patch_size"]
    model.pos_embed.zero_()
    model.pos_embed[0, 1:] = sincos_positions(side, ARCHITECTURE["embed_dim"])


def build_training_model() -> VisionTransformer:
    """Build the network with patch dropout added; its parameters are those of the plain one."""
    model = VisionTransformer(**ARCHITECTURE, patch_drop_rate=PATCH_DROP_STAGES[0][1])
    initialise(model)
    for block in model.blocks:
        block.attn.fused_attn = False  # the explicit form is the faster one here in bfloat16
    return model


def build_optimizer(model: VisionTransformer) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only: none on biases, norms and embeddings."""
    decay, plain = [], []
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim < 2 or name in ("cls_token", "pos_embed")
        (plain if exempt else decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": WEIGHT_DECAY},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK_LR)


def learning_rate(step: int, total: int) -> float:
    """Linear warmup, then half a cosine down to a hundredth of the peak."""
    warmup = max(1, int(total * WARMUP_FRACTION))
    if step < warmup:
        return PEAK_LR * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return PEAK_LR * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def patch_drop(epoch: int, epochs: int) -> float:
    """Share of the patch tokens that training drops in this epoch (counted from 0)."""
    return [rate for start, rate in PATCH_DROP_STAGES if epoch / epochs >= start][-1]


def batches(count: int) -> Iterator[Tensor]:
    """Yield the indices of one shuffled epoch, a batch at a time."""
    yield from torch.randperm(count).split(BATCH_SIZE)


def train_epoch(
    model: VisionTransformer,
    optimizer: torch.optim.Optimizer,
    train_set: tuple[Tensor, Tensor],
    epoch: int,
    epochs: int,
) -> float:
    """Train for one epoch and return the mean loss."""
    unit, labels = train_set
    model.train()
    model.patch_drop.prob = patch_drop(epoch, epochs)
    steps = math.ceil(len(unit) / BATCH_SIZE)
    total_loss = 0.0
    for index, chosen in enumerate(batches(len(unit))):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(epoch * steps + index, epochs * steps)
        inputs = normalise(augment(unit[chosen]))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(inputs)
        loss = functional.cross_entropy(
            logits.float(), labels[chosen], label_smoothing=LABEL_SMOOTHING
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total_loss += loss.item() * len(chosen)
    return total_loss / len(unit)


def heldout_top1(state: dict[str, Tensor], unit: Tensor, labels: Tensor) -> float:
    """Load ``state`` strictly into a plain FP32 model and return its top-1 in percent."""
    model = VisionTransformer(**ARCHITECTURE)
    model.load_state_dict(state, strict=True)
    model.eval()
    with torch.inference_mode():
        predicted = [model(part).argmax(1) for part in normalise(unit).split(60)]
    return 100.0 * (torch.cat(predicted) == labels).float().mean().item()


def train(
    train_set: tuple[Tensor, Tensor], held_set: tuple[Tensor, Tensor], epochs: int
) -> dict[str, Tensor]:
    """Train from scratch, print a line per epoch, return the last epoch's parameters."""
    model = build_training_model()
    optimizer = build_optimizer(model)
    for epoch in range(epochs):
        start = time.perf_counter()
        loss = train_epoch(model, optimizer, train_set, epoch, epochs)
        with torch.random.fork_rng():  # building the plain model must not move the seed
            top1 = heldout_top1(model.state_dict(), *held_set)
        seconds = time.perf_counter() - start
        print(
            f"epoch {epoch + 1:3d}/{epochs}  loss {loss:.4f}  heldout {top1:6.2f} %  "
            f"dropped {model.patch_drop.prob:.2f}  {seconds:5.1f} s",
            flush=True,
        )
    return {name: value.detach().contiguous() for name, value in model.state_dict().items()}


def make_card(epochs: int, seed: int, train_size: int, top1: float) -> dict[str, Any]:
    """Describe the data, the model, the recipe and the result, without naming the machine."""
    return {
        "dataset": {
            "name": "Optical Recognition of Handwritten Digits",
            "source": "UCI Machine Learning Repository (E. Alpaydin, C. Kaynak, 1998), "
            "https://doi.org/10.24432/C50P49; the 1797-image test part of it as shipped by "
            "scikit-learn in sklearn.datasets.load_digits",
            "licence": "CC BY 4.0 (UCI dataset); scikit-learn is BSD-3-Clause",
            "changes": "grey values 0..16 scaled to 0..255",
        },
        "architecture": ARCHITECTURE,
        "input_pipeline": "uint8 8x8 image (original 0..16 value * 255 / 16, rounded) -> PIL "
        "mode 'L' -> RGB -> resize to 56x56 with PIL BICUBIC -> float / 255 -> "
        "(x - 0.5) / 0.5, channels first",
        "training": {
            "epochs": epochs,
            "seed": seed,
            "split_seed": SPLIT_SEED,
            "train_size": train_size,
            "heldout_size": HELDOUT_SIZE,
            "batch_size": BATCH_SIZE,
            "recipe": f"Xavier and sine-cosine start values, AdamW, peak learning rate {PEAK_LR}, "
            f"weight decay {WEIGHT_DECAY}, warmup and cosine, label smoothing "
            f"{LABEL_SMOOTHING}, small shift, rotation, scale and noise, random patch tokens "
            "dropped except in the last epochs, bfloat16 autocast; weights of the last epoch, "
            "not selected on the held-out images",
        },
        "heldout_top1_percent": round(top1, 2),
        "heldout_top1_measured": "plain timm model, FP32, eval mode, the written weights",
        "versions": {
            "torch": torch.__version__,
            "timm": timm.__version__,
            "scikit-learn": sklearn.__version__,
            "pillow": PIL.__version__,
        },
    }


def npz_bytes(**arrays: np.ndarray) -> bytes:
    """Pack arrays as a compressed npz (numpy stamps each member 1980-01-01: same bytes always)."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def positive_int(text: str) -> int:
    """Parse a command-line integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; ``--help`` shows the docstring above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_OUT,
        metavar="DIR",
        help="folder for the three files, made if missing; files of those names there are "
        "replaced only if this tool wrote them (default: build/demo-model)",
    )
    parser.add_argument(
        "--epochs",
        type=positive_int,
        default=DEFAULT_EPOCHS,
        metavar="N",
        help="passes over the training digits; 1 is a smoke test that learns next to nothing, "
        "and both schedules stretch to N (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=DEFAULT_SEED,
        metavar="S",
        help="seed of initial weights, shuffling and augmentation, but not of the held-out "
        "split, which is fixed (default: %(default)s)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Train, write the three files, and report the accuracy of what was written."""
    args = parse_args(argv)
    try:
        refuse_loss(args.out, FILES)
    except OutputError as error:
        raise SystemExit(str(error)) from None
    torch.set_num_threads(THREADS)
    torch.manual_seed(args.seed)
    train_x, train_y, held_x, held_y = load_split()
    train_set = (to_unit_tensor(train_x), torch.from_numpy(train_y))
    held_set = (to_unit_tensor(held_x), torch.from_numpy(held_y))
    start = time.perf_counter()
    state = train(train_set, held_set, args.epochs)
    print(f"training took {time.perf_counter() - start:.0f} s", flush=True)
    weights = safetensors.torch.save(state, metadata={"format": "pt"})
    top1 = heldout_top1(safetensors.torch.load(weights), *held_set)
    card = make_card(args.epochs, args.seed, len(train_x), top1)
    card_text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    written = (weights, npz_bytes(images=held_x, labels=held_y), card_text.encode())
    put_files(args.out, dict(zip(FILES, written, strict=True)))
    print(f"wrote {', '.join(FILES)} into {args.out}", flush=True)
    print(f"heldout top-1 of the written weights: {top1:.2f} %", flush=True)


if __name__ == "__main__":
    main()
