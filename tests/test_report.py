"""The manifest's facts and the printed report say what was run, in the run's own numbers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import escape
from rich.console import Console

from atm_export.choice import Choice
from atm_export.config import ModelSpec
from atm_export.measure.data.images import ImageSet
from atm_export.measure.export import measure
from atm_export.methods.atm import thresholds
from atm_export.methods.plan import MergePlan
from atm_export.model.flops import linear_weights
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from atm_export.report.console import print_report
from atm_export.report.facts import manifest_facts, summarize_method
from atm_export.report.page import page
from atm_export.resolving import resolve
from atm_export.runs.manifest import FORMAT, manifest_of
from atm_export.subject import Subject
from tests.manifests import FILES, least_facts
from tests.tiny import planned

REPORT: dict[str, Any] = {
    "model": "demo",
    "method": {"summary": "ATM lossless: alpha 1, beta 0.035, theta_min 0.88, adaptive"},
    "weights": {"source": "atm-export demo", "meaningless_accuracy": False},
    "images": {"source": "held-out digits", "count": 360},
    "parity": {
        "proven": True,
        "comparisons": 57,
        "inputs": 23,
        "logits_max_abs": 2.1e-06,
        "decisions_that_differ": 0,
    },
    "gflops": {"mean": 0.0502, "unmerged": 0.1571, "paper": 1.25, "images": 360},
    "tokens": {"mean_after_block": [197.0, 141.4, 20.0]},
    "accuracy": {"images": 360, "top1": 98.611, "unmerged_top1": 98.889, "agreement": 99.722},
    "latency": {
        "threads": 2,
        "rows": [
            {
                "batch": 8,
                "rounds": 4,
                "median_ms": {"unmerged": 63.8, "merged": 28.7},
                "speedup": {"merged": 2.3},
                "flops_ratio": 3.04,
            }
        ],
    },
}


def printed(report: dict[str, Any]) -> str:
    text = io.StringIO()
    print_report(Console(file=text, width=250), Path("build/demo"), report)
    return text.getvalue()


def test_the_printed_report_has_the_numbers() -> None:
    text = printed(REPORT)
    for words in (
        "ATM lossless: alpha 1, beta 0.035, theta_min 0.88",
        "proven: 57 comparisons on 23 inputs",
        "2.1e-06",
        "0.050 of 0.157 an image (-68 %) on 360 held-out digits; paper 1.25",
        "197 141 20",
        "98.61 % top-1, unmerged 98.89 %",
        "batch 8: 28.7 ms, unmerged 63.8 ms, speed-up 2.30 (FLOPs ratio 3.04)",
        "build/demo",
    ):
        assert words in text
    assert "random weights" not in text and "UNPROVEN" not in text


def test_what_must_not_be_overlooked_is_said() -> None:
    parity = {**REPORT["parity"], "proven": False, "decisions_that_differ": 3}
    text = printed({**REPORT, "parity": parity, "weights": {"meaningless_accuracy": True}})
    assert "UNPROVEN" in text and "decisions that differ: 3" in text
    assert "random weights: accuracy means nothing" in text


def test_a_report_without_labels_and_latency() -> None:
    text = printed({k: v for k, v in REPORT.items() if k not in ("accuracy", "latency")})
    assert "top-1" not in text and "speed-up" not in text


def chosen(choice: Choice) -> tuple[Any, MergePlan]:
    config = resolve(choice)
    return config, planned(config.method, 12, pooled=False, proportional=True)


def test_the_method_is_told_block_by_block() -> None:
    facts = summarize_method(*chosen(Choice(model="demo")))
    assert facts["name"] == "atm" and facts["merge"] == "adaptive" and facts["preset"] == "lossless"
    assert facts["theta_per_block"] == [*thresholds(1.0, 0.035, 0.88, 12)[:11], None]
    assert facts["groups_per_block"] == ["alternate"] * 9 + ["size"] * 2 + [None]
    assert facts["summary"] == "ATM lossless: alpha 1, beta 0.035, theta_min 0.88, adaptive"


@pytest.mark.parametrize(
    ("choice", "summary"),
    [
        (Choice(model="demo", method="none"), "unmerged"),
        (Choice(model="demo", method="tome", r="8"), "ToMe, r = " + " ".join(["8"] * 12)),
        (
            Choice(model="demo", theta_min=0.9),
            "ATM alpha 1, beta 0.035, theta_min 0.9, adaptive",
        ),
        (
            Choice(model="demo", merge="per-image"),
            "ATM lossless: alpha 1, beta 0.035, theta_min 0.88, per-image",
        ),
    ],
)
def test_the_method_in_one_line(choice: Choice, summary: str) -> None:
    assert summarize_method(*chosen(choice))["summary"] == summary


@pytest.mark.parametrize(
    "choice",
    [
        Choice(model="demo", theta_min=1.0),
        Choice(model="demo", theta_min=1.0, merge="per-image"),
        Choice(model="demo", method="tome", r="0"),
    ],
    ids=lambda choice: f"{choice.method}, {choice.merge}",
)
def test_a_plan_that_merges_nothing_says_so_and_where_the_saving_comes_from(choice: Choice) -> None:
    """The demo has 196 + 1 tokens; its last MLP runs on the class token alone."""
    config, plan = chosen(choice)
    assert summarize_method(config, plan)["summary"].endswith("; nothing merges")
    model = load_model(config.model)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), dtype=np.uint8)
    found = measure(Subject(config, model, plan), ImageSet(pixels, "noise"))
    last = model.backbone.parts()[-1].mlp
    flops = found["gflops"]
    assert flops["unmerged"] - flops["mean"] == pytest.approx(196 * linear_weights(last) / 1e9)
    share = 100 * (flops["mean"] / flops["unmerged"] - 1)
    note = (
        f"no token merges on these images; the {share:+.1f} % is the last block's MLP, which the "
        "export runs on the class token that the head reads alone"
    )
    assert flops["note"] == note and share < -1
    text = printed({**REPORT, "gflops": {**flops, "images": 2}})
    assert note in text
    files = {name: {"bytes": 1, "sha256": "0" * 64} for name in FILES}
    facts = {**least_facts(), **manifest_facts(config, model, plan), "files": files}
    manifest = manifest_of(json.loads(json.dumps({"format": FORMAT, "run_key": "0", **facts})))
    report = {**REPORT, "method": facts["method"], "gflops": flops, "tokens": found["tokens"]}
    report |= {"weights": facts["weights"], "notes": [], "versions": {}}
    del report["latency"]
    assert escape(note) in page(manifest, report)


def test_a_plan_that_merges_says_nothing_of_the_kind() -> None:
    for choice in (Choice(model="demo"), Choice(model="demo", method="none")):
        assert "nothing merges" not in summarize_method(*chosen(choice))["summary"]


def test_a_frozen_schedule_states_its_r() -> None:
    config, plan = chosen(Choice(model="demo", merge="frozen"))
    facts = summarize_method(config, plan.frozen(range(12)))
    assert facts["r_per_block"] == [*range(11), None]
    assert facts["theta_per_block"] == [None] * 12
    assert "frozen, r = 0 1 2 3 4 5 6 7 8 9 10 0" in facts["summary"]


@pytest.mark.parametrize(
    ("choice", "image", "outputs"),
    [
        (Choice(model="demo"), ["batch", 3, 56, 56], {"logits": ["batch", 10]}),
        (
            Choice(model="demo", uint8_input=True, trace=True),
            ["batch", 56, 56, 3],
            {
                "logits": ["batch", 10],
                "tokens_per_block": [12],
                "patch_to_token": ["batch", 196],
            },
        ),
        (
            Choice(model="demo", trace=True, merge="per-image"),
            ["batch", 3, 56, 56],
            {
                "logits": ["batch", 10],
                "tokens_per_block": ["batch", 12],
                "patch_to_token": ["batch", 196],
            },
        ),
    ],
)
def test_the_manifest_describes_the_interface(
    choice: Choice, image: list[Any], outputs: dict[str, list[Any]]
) -> None:
    model = load_model(ModelSpec(name="demo", config=load_model_config("demo")))
    config, plan = chosen(choice)
    facts = manifest_facts(config, model, plan)
    interface = facts["interface"]
    assert interface["input"]["name"] == "image" and interface["input"]["shape"] == image
    assert interface["input"]["normalised"] is not choice.uint8_input
    assert interface["input"]["dtype"] == ("uint8" if choice.uint8_input else "float32")
    assert {name: out["shape"] for name, out in interface["outputs"].items()} == outputs
    assert facts["labels"] == [str(digit) for digit in range(10)]
    assert facts["preprocessing"]["resize"] == [56, 56]
    assert facts["config"]["method"]["name"] == "atm"
    assert len(facts["weights"]["sha256"]) == 64
