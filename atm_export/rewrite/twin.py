"""The export-friendly twin: a second module on the same weights that takes the same decisions.

Differences from the reference, each of them exact: q, k, v are three layers with the softmax scale
folded into q; keys have no bias (it adds the same to all scores of a query; the metric adds it to
its sum); the projection takes over the bias of v (attention weights sum to 1); the last block
computes only the rows that the head reads; a rule decides and reduces in one step. Where a rule
asks for keys or values themselves, those keep their bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from atm_export.methods.plan import Form, MergePlan
from atm_export.methods.tokens import take_rows
from atm_export.model.backbone import Answer, Backbone
from atm_export.rewrite.block import Merge, TwinBlock
from atm_export.rewrite.ragged_block import RaggedTwinBlock
from atm_export.rewrite.stepped_block import SteppedTwinBlock


class Twin(nn.Module):
    """Image to (what the head gives, tokens per block [blocks], token maps [blocks, B, N0]).

    Where counts are decided per image, tokens per block are [B, blocks]. form: see `Form`.
    """

    def __init__(self, backbone: Backbone, plan: MergePlan, form: Form = "plain") -> None:
        super().__init__()
        self.per_image = plan.per_image
        self.backbone = backbone
        parts = backbone.parts()
        self.tokens = backbone.tokens
        n: int | None = self.tokens
        blocks: list[TwinBlock] = []
        dropped = False
        for part, rule in zip(parts, plan.blocks, strict=True):
            last = part is parts[-1] and plan.merges
            reads = backbone.head_rows if last else None
            make: Callable[..., TwinBlock] = RaggedTwinBlock if plan.per_image else TwinBlock
            if form == "stepped":
                pools = last and reads is None
                make = partial(SteppedTwinBlock, each=plan.per_image, pools=pools)
            block = make(
                part,
                rule,
                tokens=n,
                most=self.tokens,
                prefix=backbone.prefix,
                reads=reads,
                proportional=plan.proportional,
                dropped=dropped,
            )
            dropped = dropped or (rule is not None and rule.drops)
            n = block.tokens_out
            blocks.append(block)
        self.blocks = nn.ModuleList(blocks)

    @property
    def twin_blocks(self) -> list[TwinBlock]:
        return [block for block in self.blocks if isinstance(block, TwinBlock)]

    def forward(self, image: Tensor) -> tuple[Answer, Tensor, Tensor]:
        tokens = self.backbone.embed(image)
        sizes: Tensor | None = None
        where = torch.arange(self.tokens).expand(tokens.shape[0], -1)
        count = torch.tensor([self.tokens])
        if self.per_image:
            count = count.expand(tokens.shape[0])
        counts, maps, states = [], [], []
        for block in self.twin_blocks:
            out = block(tokens, sizes, where)
            if isinstance(out, Merge):
                tokens, sizes, where = out[:3]
                if out.remaining is not None:
                    count = out.remaining
                elif block.count is not None:
                    count = torch.tensor([block.count])
            else:
                tokens = out
            counts.append(count)
            maps.append(where)
            states.append(tokens)
        told = torch.stack(counts, dim=1) if self.per_image else torch.cat(counts)
        return self._answer(states, sizes, maps), told, torch.stack(maps)

    def _answer(
        self, states: Sequence[Tensor], sizes: Tensor | None, maps: Sequence[Tensor]
    ) -> Answer:
        """Of the tokens and places after each block, and the sizes after the last."""
        backbone = self.backbone
        if not backbone.unmerges:
            return backbone.head(states[-1], sizes)
        return tuple(unmerged(backbone, states[i], maps[i]) for i in backbone.read_after)


def unmerged(backbone: Backbone, tokens: Tensor, where: Tensor) -> Tensor:
    """The dense answer of tokens [B, n, D], where the embedded ones are at places [B, N0]."""
    return backbone.dense(take_rows(tokens, where[:, backbone.prefix :]))
