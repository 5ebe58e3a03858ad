"""`atm-export tune`: an operating point for your model and your images."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import Parameter
from rich.console import Console

from atm_export import loose_files, place
from atm_export.backends import ONNXRUNTIME
from atm_export.backends.threads import use_threads
from atm_export.bounds import checked_threads
from atm_export.choice import WantedTask
from atm_export.config import Preset
from atm_export.errors import ConfigError
from atm_export.measure.data.classes import ClassOrder
from atm_export.measure.tune.latency import Race
from atm_export.measure.tune.objective import Known
from atm_export.measure.tune.search import LocalWorkers, Workers, load_optuna, pareto
from atm_export.measure.tune.space import said
from atm_export.measure.tune.tune import Tuned, Tuning, require
from atm_export.measure.tune.tune import tune as run_tune
from atm_export.methods import USUAL_METHOD, methods
from atm_export.methods.base import shown
from atm_export.model_configs import add_user_preset, check_preset, file_name
from atm_export.numbers import Whole
from atm_export.report.front import front_csv, front_svg
from atm_export.tasks.judge import Limits

FILES = ("pareto.csv", "pareto.svg", "tune.json")
JOURNAL = "journal"
LIMITS = ("max_drop", "min_agreement", "min_cosine", "min_recall", "max_distance")
IMAGES = (
    "Your images: class folders, a flat folder (with --labels or without any), tar files or "
    "hfds/NAME. A few hundred are enough."
)


def _shown(text: str) -> Any:
    return Parameter(help=text)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """How to search, on what and within which limits."""

    weights: Annotated[str, _shown("pretrained, or a checkpoint file.")] = "pretrained"
    labels: Annotated[Path | None, _shown("Labels file, as for evaluate.")] = None
    class_order: Annotated[
        ClassOrder | None, _shown("What class folders mean, as for evaluate.")
    ] = None
    use: Annotated[
        Whole | None,
        _shown("Tune on this many images; the others then confirm the result."),
    ] = None
    task: Annotated[
        WantedTask,
        _shown(
            "As for an export: embeddings are judged by cosine and nearest neighbours, patches by "
            "cosine."
        ),
    ] = "auto"
    max_drop: Annotated[
        float | None,
        _shown("For classes: top-1 that may be lost, in points, where labels are known (0)."),
    ] = None
    min_agreement: Annotated[
        float | None,
        _shown("For classes: least agreement with the unmerged model, in percent (96)."),
    ] = None
    min_cosine: Annotated[
        float | None,
        _shown(
            "For embeddings, or patches of --task dense: least median cosine with the unmerged "
            "model's (0.98; patches 0.95)."
        ),
    ] = None
    min_recall: Annotated[
        float | None,
        _shown(
            "For embeddings: images whose nearest neighbour among the images stays (recall@1), in "
            "percent (75)."
        ),
    ] = None
    max_distance: Annotated[
        float | None, _shown("Largest mean cosine distance of the class token (1).")
    ] = None
    trials: Annotated[Whole, _shown("Operating points to try, resumed ones included.")] = 80
    minutes: Annotated[float, _shown("Stop after this time.")] = 30.0
    method: Annotated[str, _shown("The method to tune.")] = USUAL_METHOD
    methods: Annotated[
        str | None,
        _shown("Several methods, a list (atm,mctf,diffrate): --trials each, the best of all wins."),
    ] = None
    goal: Annotated[
        Literal["gflops", "latency"],
        Parameter(
            name="--for",
            help="What is to be small: GFLOPs, or the time that the export takes here on --backend "
            "at --batch, measured beside the unmerged one (searches --merge-blocks too).",
        ),
    ] = "gflops"
    backend: Annotated[str, _shown("Where --for latency measures (onnxruntime, openvino).")] = (
        ONNXRUNTIME
    )
    split: Annotated[
        bool, _shown("Search the split too (the last block that groups alternately).")
    ] = False
    merge_blocks: Annotated[
        bool,
        Parameter(help="Search too which blocks merge; few merges take less time.", negative=()),
    ] = False
    batch: Annotated[Whole, _shown("Images a batch, which share r (and are timed together).")] = 32
    workers: Annotated[Whole | None, _shown("Decoding processes.")] = None

    def tuning(self, model: str, images: str) -> Tuning:
        """The task, with the number of cores where none is said."""
        return Tuning(
            model=model,
            weights=self.weights,
            images=images,
            labels=self.labels,
            class_order=self.class_order,
            use=self.use,
            batch=self.batch,
            workers=(os.cpu_count() or 1) if self.workers is None else self.workers,
            limits={n: getattr(self, n) for n in LIMITS if getattr(self, n) is not None},
            trials=self.trials,
            minutes=self.minutes,
            methods=self._methods(),
            optional=self._optional(),
            race=Race(self.backend, self.batch) if self.goal == "latency" else None,
            task=self.task,
        )

    def _methods(self) -> tuple[str, ...]:
        if self.methods is None:
            return (self.method,)
        if self.method != USUAL_METHOD:
            raise ConfigError("--method and --methods say the same thing; give one")
        names = tuple(dict.fromkeys(self.methods.split(",")))
        for name in names:
            methods[name]
        return names

    def _optional(self) -> tuple[str, ...]:
        """Settings that are searched where asked for; a search for speed asks for the blocks of
        methods that have them."""
        asked = {"split": self.split, "merge_blocks": self.merge_blocks}
        names = [name for name, wanted in asked.items() if wanted]
        if (
            self.goal == "latency"
            and "merge_blocks" not in names
            and USUAL_METHOD in self._methods()
        ):
            names.append("merge_blocks")
        return tuple(names)


USUAL = TuneOptions()


def tune(
    model: str,
    /,
    *,
    images: Annotated[str, _shown(IMAGES)],
    options: TuneOptions = USUAL,
    name: Annotated[str, _shown("Name of the preset.")] = "tuned",
    ray: Annotated[
        str | None,
        _shown("Run trials on the Ray cluster at this address (auto: the local one)."),
    ] = None,
    threads: Annotated[Whole, _shown("CPU threads (0: all).")] = 0,
    out: Annotated[Path | None, _shown("Folder of journal and results (build/tune-MODEL).")] = None,
) -> int:
    """Find the operating point with the fewest GFLOPs that loses next to nothing on your images.

    With labels top-1 may drop by --max-drop; always the merged model must agree with the unmerged
    one (by a standard error more than --min-agreement, so that it holds on other images too).
    Of embeddings (--task embed) the median cosine must keep --min-cosine, and the share of images
    whose nearest neighbour stays --min-recall, likewise by a standard error; of patches (--task
    dense) the median cosine over all patches.
    Searches the method's settings (alpha, beta and theta_min on the paper's grid) with Optuna, and
    with --merge-blocks which blocks merge; hopeless points are stopped after a few batches. Killed,
    the same command goes on. Writes the preset into presets/ of your config folder
    ($ATM_EXPORT_CONFIGS, else ~/.config/atm-export), and pareto.csv, pareto.svg and tune.json into
    --out.

        atm-export tune deit_s --images photos --use 200
        atm-export deit_s --preset tuned
        atm-export tune deit_t --images photos --for latency --batch 1
        atm-export tune deit_t --task embed --images photos --min-cosine 0.98 --min-recall 80
    """
    checked_threads(threads, "--threads")
    load_optuna()
    task = options.tuning(model, images)
    _check_race(task, ray)
    torch.set_num_threads(use_threads(threads))
    check_preset(model, name)
    out = _checked(out or Path("build") / f"tune-{file_name(model)}")
    tuned = _search(task, out / JOURNAL, ray)
    _write(out, tuned)
    chosen = require(tuned)
    preset = Preset(method=chosen["method"], settings=said(chosen["point"]))
    path = add_user_preset(model, name, preset)
    _print(Console(soft_wrap=True), model, name, tuned, path)
    return 0


def _checked(out: Path) -> Path:
    place.refuse_loss(out, FILES)
    out = place.plain(out)
    place.refuse_other_folder(out / JOURNAL)
    return out


def _check_race(task: Tuning, ray: str | None) -> None:
    """ConfigError for what cannot be timed, before the long search."""
    if task.race is None:
        return
    if ray is not None:
        raise ConfigError("--for latency measures this machine; --ray runs trials on others")
    task.race.backend_of().require()


def _search(task: Tuning, journal: Path, ray: str | None) -> Tuned:
    def make_workers(backbone: Any, known: Known, limits: Limits) -> Workers:
        if ray is None:
            return LocalWorkers(backbone, known, limits)
        from atm_export.measure.tune.ray_workers import RayWorkers

        return RayWorkers(ray, backbone, known, limits)

    console = Console(stderr=True)
    with console.status("starting") as status:

        def progress(results: list[dict[str, Any]]) -> None:
            text = _so_far(results, task.trials)
            status.update(text)
            if not console.is_terminal and len(results) % 10 == 0:
                print(text, flush=True)

        return run_tune(task, journal, make_workers, status.update, progress)


def _so_far(results: list[dict[str, Any]], trials: int) -> str:
    kept = [r["gflops"] for r in results if r["keeps_limits"]]
    best = f"best {min(kept):.3f} GFLOPs" if kept else "none keeps the limits yet"
    stopped = sum(r["hopeless"] for r in results)
    return f"trial {len(results)} of {trials}: {best}; {stopped} stopped early"


def _write(out: Path, tuned: Tuned) -> None:
    front = pareto(tuned.results, tuned.judge.merit.key)
    facts = {
        "task": tuned.task,
        "unmerged": tuned.known,
        "chosen": tuned.chosen,
        "confirmed": tuned.confirmed,
        "trials": len(tuned.results),
        "stopped_early": sum(r["hopeless"] for r in tuned.results),
        "pareto": front,
    }
    svg = front_svg(tuned.results, front, tuned.known, tuned.chosen, tuned.judge)
    text = json.dumps(facts, indent=1, sort_keys=True) + "\n"
    written = (front_csv(front, tuned.names, tuned.judge), svg, text)
    loose_files.put_files(out, {n: t.encode() for n, t in zip(FILES, written, strict=True)})


def _print(console: Console, model: str, name: str, tuned: Tuned, path: Path) -> None:
    chosen = require(tuned)
    point = ", ".join(f"{key} {shown(v)}" for key, v in said(chosen["point"]).items())
    lines = [f"{model}  {chosen['method']}: {point}"]
    for what, facts, plain in (
        ("tuned on", chosen, tuned.known),
        ("confirmed", tuned.confirmed, tuned.confirmed and tuned.confirmed["unmerged"]),
    ):
        if not facts or not plain:
            continue
        saved = 100 * (facts["gflops"] / plain["gflops"] - 1)
        lines.append(
            f"{what:9s} {facts['images']} images: {facts['gflops']:.3f} of {plain['gflops']:.3f} "
            f"GFLOPs ({saved:+.0f} %); {tuned.judge.trial_text(facts, plain)}"
        )
    if "speedup" in chosen:
        lines.append(
            f"speed     {chosen['median_ms']:.1f} ms a batch, {chosen['speedup']:.2f} times as "
            "fast as the unmerged export in the median of paired rounds"
        )
    stopped = sum(r["hopeless"] for r in tuned.results)
    lines.append(f"trials    {len(tuned.results)}, {stopped} stopped early")
    lines.append(f"written   {path}: atm-export {model} --preset {name}")
    for line in lines:
        console.print(line, highlight=False, markup=False)
