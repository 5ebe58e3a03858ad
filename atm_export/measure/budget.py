"""The settings of a method that cost what may be spent: `--gflops` where no preset says them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from atm_export.config import RunConfig
from atm_export.errors import ConfigError
from atm_export.measure.data.images import ImageSet, load_images
from atm_export.measure.export import BATCH
from atm_export.methods import methods
from atm_export.methods.base import MethodSettings, shown
from atm_export.methods.flat import flattened
from atm_export.methods.given import settings_of
from atm_export.model.backbone import LoadedModel
from atm_export.model.flops import trace_gmacs, unmerged_gmacs
from atm_export.model.plan import plan_for, shape_of
from atm_export.model.reference import run_reference
from atm_export.model.zoo import load_model
from atm_export.resolving import Budget


def meeting(
    config: RunConfig, budget: Budget, say: Callable[[str], None] = lambda text: None
) -> RunConfig:
    """The config with the dearest settings of its method's dial that keep the budget on the
    config's images, or those that ship; the eager reference counts.

    Raises ConfigError where the method has no dial, where what it turns was given, or where the
    model costs more at its lowest end.
    """
    say(f"looking for settings of {config.method.name} at {budget.gflops:g} GFLOPs")
    model = load_model(config.model)
    images = load_images(config.images or config.calibrate, model.preprocessing, model.own_images)
    settings, cost = within_budget(model, config.method, images, budget)
    changed = {
        name: value
        for name, value in flattened(settings).items()
        if flattened(config.method).get(name) != value
    }
    words = ", ".join(f"{name} {shown(value)}" for name, value in changed.items()) or "as given"
    say(f"found {words}; {cost:.3f} GFLOPs on {len(images.pixels)} images")
    return config.model_copy(update={"method": settings})


def within_budget(
    model: LoadedModel, start: MethodSettings, images: ImageSet, budget: Budget
) -> tuple[MethodSettings, float]:
    """Those settings, and what they cost in the mean of the images, in batches of 8."""
    gflops = budget.gflops
    if not gflops > 0:
        raise ConfigError(f"--gflops {gflops:g}: give a number above 0")
    steps = methods[start.name].dial(start, shape_of(model.backbone))
    if not steps:
        raise ConfigError(
            f"--gflops cannot choose settings of method {start.name} for this model; "
            "give them by --set"
        )
    if both := sorted(budget.fixed & steps[0].keys()):
        raise ConfigError(f"--gflops looks for {both[0]}, which is given too; give one of both")

    def at(step: int) -> MethodSettings:
        return settings_of(start.name, {**flattened(start), **steps[step]})

    cost = cache(lambda step: mean_gmacs(model, at(step), images))
    if not cost(0) <= gflops:
        raise ConfigError(
            f"--gflops {gflops:g}: the least that method {start.name} reaches here is "
            f"{cost(0):.3f} GFLOPs (unmerged: {unmerged_gmacs(model.backbone):.3f})"
        )
    low, high = 0, len(steps)  # cost rises from step to step: `low` fits, `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= gflops else (low, middle)
    return at(low), cost(low)


def mean_gmacs(model: LoadedModel, settings: MethodSettings, images: ImageSet) -> float:
    """GFLOPs an image, as reports count them; one image is enough where no count is decided at run
    time."""
    backbone = model.backbone
    plan = plan_for(backbone, settings)
    pixels = images.pixels if plan.adaptive else images.pixels[:1]
    parts = [
        trace_gmacs(
            backbone,
            run_reference(backbone, plan, model.tensor(pixels[i : i + BATCH])),
            plan.merges,
        )
        for i in range(0, len(pixels), BATCH)
    ]
    return float(torch.cat(parts).mean())
