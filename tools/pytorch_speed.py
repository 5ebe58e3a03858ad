"""How fast `atm_export.merged` is in PyTorch, beside the unmerged model and a plain merge by
scatter, the usual way to merge tokens there, written here to be compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from results import busy_cores
from torch import Tensor, nn

from atm_export import merged
from atm_export.backends.threads import use_threads
from atm_export.measure.speed.latency import median_interval, orders
from atm_export.model.backbone import LoadedModel

R = {"deit_t": 9, "deit_s": 11}  # ToMe's tokens a block in the paper's table 2, and for others 8


class ScatterMerged(nn.Module):
    """ToMe on a timm ViT: a bipartite match by sorted similarities, and sums by scatter_add."""

    def __init__(self, model: Any, r: int) -> None:
        super().__init__()
        self.model, self.r = model, r

    def forward(self, image: Tensor) -> Tensor:
        model = self.model
        x = model.norm_pre(model._pos_embed(model.patch_embed(image)))
        sizes = torch.ones_like(x[..., :1])
        for block in model.blocks:
            attended, keys = self._attention(block.attn, block.norm1(x), sizes)
            x, sizes = self._merged(x + block.ls1(attended), sizes, keys)
            x = x + block.ls2(block.mlp(block.norm2(x)))
        return model.forward_head(model.norm(x))

    def _attention(self, attn: Any, x: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        batch, n, width = x.shape
        qkv = attn.qkv(x).reshape(batch, n, 3, attn.num_heads, attn.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * attn.scale) @ k.transpose(-2, -1) + sizes.log().transpose(1, 2).unsqueeze(1)
        out = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, n, width)
        return attn.proj(out), k.mean(dim=1)

    def _merged(self, x: Tensor, sizes: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            unit = keys / keys.norm(dim=-1, keepdim=True)
            scores = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
            scores[:, 0] = -torch.inf
            best, to = scores.max(dim=-1)
            ranked = best.argsort(dim=-1, descending=True)
            gone, stay = ranked[:, : self.r], ranked[:, self.r :].sort(dim=1).values
            to = to.gather(1, gone)
        total, mass = x * sizes, sizes
        parts = [self._joined(each, gone, stay, to) for each in (total, mass)]
        return parts[0] / parts[1], parts[1]

    @staticmethod
    def _joined(x: Tensor, gone: Tensor, stay: Tensor, to: Tensor) -> Tensor:
        def wide(index: Tensor) -> Tensor:
            return index.unsqueeze(2).expand(-1, -1, x.shape[2])

        first, second = x[:, ::2], x[:, 1::2]
        second = second.scatter_add(1, wide(to), first.gather(1, wide(gone)))
        return torch.cat([first.gather(1, wide(stay)), second], dim=1)


def rows_of(
    model: LoadedModel, batches: tuple[int, ...], rounds: int, facts: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """ToMe in evaluation and in training (forward and backward), all in turn on one thread."""
    use_threads(1)
    torch.set_num_threads(1)
    plain: Any = model.backbone.model
    r = R.get(model.name, 8)
    modules: dict[str, nn.Module] = {
        "unmerged": plain,
        "merged": merged(plain, "tome", r=r),
        "scatter": ScatterMerged(plain, r),
    }
    for training in (False, True):
        plain.requires_grad_(training)
        for batch in batches:
            images = torch.randn(batch, *model.backbone.blank().shape[1:])
            busy = busy_cores()
            seconds = _in_turn(modules, images, rounds, _trained if training else _asked)
            for name, spent in seconds.items():
                ratio = np.asarray(seconds["scatter"]) / np.asarray(spent)
                low, high = median_interval(ratio)
                yield {
                    **facts,
                    "candidate": name,
                    "r": r,
                    "training": training,
                    "threads": 1,
                    "batch": batch,
                    "images_per_s": batch / float(np.median(spent)),
                    "over_scatter": {"value": float(np.median(ratio)), "low": low, "high": high},
                    "busy": busy,
                }
    plain.requires_grad_(False)


def _in_turn(
    modules: dict[str, nn.Module],
    images: Tensor,
    rounds: int,
    work: Callable[[nn.Module, Tensor], None],
) -> dict[str, list[float]]:
    """CPU seconds of each module in each round, which other programs change less than the clock."""
    names, turns = list(modules), orders(len(modules))
    spent: dict[str, list[float]] = {name: [] for name in names}
    for i in range(-1, rounds):
        for name in (names[k] for k in turns[i % len(turns)]):
            start = time.process_time()
            work(modules[name], images)
            if i >= 0:
                spent[name].append(time.process_time() - start)
    return spent


@torch.inference_mode()
def _asked(module: nn.Module, images: Tensor) -> None:
    module.eval()(images)


def _trained(module: nn.Module, images: Tensor) -> None:
    module.train()(images).square().sum().backward()
    module.zero_grad()
