"""Tokens that become one: weighted means of groups, for the reference and for the graph."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from atm_export.methods.tokens import sorted_by, take_rows


def summed(x: Tensor, moved_to: Tensor, count: int) -> Tensor:
    """Sums [B, count, C] of the rows of x [B, n, C] that move to the same of `count` places."""
    total = x.new_zeros(x.shape[0], count, x.shape[2])
    return total.scatter_add(1, moved_to.unsqueeze(2).expand_as(x), x)


def means(x: Tensor, weights: Tensor, moved_to: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Means [B, count, C] of those rows by weights [B, n, 1], and the sums of the weights."""
    mass = summed(weights, moved_to, count)
    return summed(x * weights, moved_to, count) / mass, mass


def fused(maps: Tensor, weights: Tensor, moved_to: Tensor, count: int) -> Tensor:
    """An attention map [B, H, n, n], merged: keys are summed, then queries averaged by weights
    [B, n, 1]; [B, H, count, count]."""
    batch, heads = maps.shape[:2]
    moved_to = moved_to.repeat_interleave(heads, dim=0)
    by_key = summed(maps.flatten(0, 1).transpose(1, 2), moved_to, count).transpose(1, 2)
    merged, _ = means(by_key, weights.repeat_interleave(heads, dim=0), moved_to, count)
    return merged.unflatten(0, (batch, heads))


class Groups(NamedTuple):
    """Who joins whom, as a graph computes it: kept [B, K], old positions in their new order;
    merged [B, R], old positions, each of which joins the kept one at new position into [B, R]."""

    kept: Tensor
    merged: Tensor
    into: Tensor

    def moved_to(self) -> Tensor:
        """New position of every old one, [B, n]."""
        batch, kept = self.kept.shape
        new = torch.cat([torch.arange(kept).expand(batch, -1), self.into], dim=1)
        old = torch.cat([self.kept, self.merged], dim=1)
        return new.gather(1, sorted_by(old, largest=False))

    def shares(self, weights: Tensor) -> Shares:
        """What each token contributes to its group, by weights [B, n, 1]."""
        own, moving = take_rows(weights, self.kept), take_rows(weights, self.merged)
        place = torch.arange(self.kept.shape[1]).unsqueeze(1)
        joins = torch.where(self.into.unsqueeze(1) == place, moving.transpose(1, 2), 0.0)
        total = own + joins.sum(dim=2, keepdim=True)
        return Shares(self, total, own / total, joins / total)


class Shares(NamedTuple):
    """Weights of groups [B, K, 1], and of those the shares of the kept [B, K, 1] and of the merged
    [B, K, R]."""

    groups: Groups
    total: Tensor
    own: Tensor
    joined: Tensor

    def means(self, x: Tensor) -> Tensor:
        """Weighted means [B, K, C] of the rows of x [B, n, C] by group."""
        joining = self.joined @ take_rows(x, self.groups.merged)
        return take_rows(x, self.groups.kept) * self.own + joining
