"""The parity ladder proves what is right, and names block and image of what is not."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from atm_export.errors import ParityError
from atm_export.inputs import Preprocessing
from atm_export.methods.bipartite.operators import similarity_limit
from atm_export.prove import compare, ladder
from atm_export.prove.inputs import Pixels, cases
from atm_export.prove.results import LadderResult
from tests.exports import Exported, export, exported
from tests.graphs import changed
from tests.ladders import Climber, climb
from tests.tiny import MEAN, STD, loaded, spec_of, threshold_plan, tiny_vit

HOW = Preprocessing((48, 48), 1.0, "bicubic", MEAN, STD)


def pixels(count: int = 12) -> Pixels:
    """Noise in colour patches of several sizes, [count, 48, 48, 3]."""
    rng = np.random.default_rng(7)
    images = [
        np.kron(rng.integers(0, 256, (48 // block, 48 // block, 3)), np.ones((block, block, 1)))
        for block in (2, 4, 8, 16) * (count // 4)
    ]
    return np.stack(images).astype(np.uint8)


def subject(made: Exported, *, uint8: bool = False) -> Climber:
    return Climber(loaded(made.backbone, HOW), made.plan, made.traced, made.shipped, uint8)


@pytest.fixture
def one_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Climb on batches of 3 alone."""
    monkeypatch.setattr(ladder, "cases", partial(cases, batches=(3,)))


def refusal(result: LadderResult) -> str:
    assert not result.proven
    with pytest.raises(ParityError) as caught:
        result.require()
    assert caught.value.exit_code == 5
    return str(caught.value)


def test_a_right_export_is_proven_on_every_rung() -> None:
    steps: list[str] = []
    result = climb(subject(exported("class token")), pixels(), steps.append)
    assert result.proven
    result.require()
    names = {(rung.name, rung.case) for rung in result.rungs}
    for kind in ("images", "flat", "noise"):
        for batch in (1, 3, 8):
            case = f"{kind}, batch {batch}"
            assert {(rung, case) for rung in ("twin", "onnx", "shipped onnx")} <= names
            assert case in steps
    for label, merges in (("r = 0", False), ("r = max", True)):
        found = [rung for rung in result.rungs if rung.case.startswith(label)]
        assert {rung.name for rung in found} == {"twin", "onnx", "shipped onnx"}
        assert all((rung.merged_tokens > 0) == merges for rung in found)
    assert sum(rung.merged_tokens for rung in result.rungs if rung.case == "images, batch 8") > 100
    assert max(rung.measured["logits_max_abs"] for rung in result.rungs) < 1e-4


def test_the_facts_of_a_proof_are_its_numbers() -> None:
    result = climb(subject(exported("frozen")), pixels())
    facts = result.facts()
    assert facts["proven"] is True
    assert facts["comparisons"] == len(result.rungs) == 3 * facts["inputs"]
    assert facts["logits_max_abs"] == max(rung.measured["logits_max_abs"] for rung in result.rungs)
    assert facts["decisions_that_differ"] == 0 and facts["differences"] == []
    assert facts["top1_agreement"] == 1
    assert facts["tolerance"]["reason"] and facts["margin"]["reason"]


@pytest.mark.parametrize("name", ["no prefix", "per image", "distilled", "alike", "unmerged"])
@pytest.mark.usefixtures("one_batch_size")
def test_right_exports_of_other_kinds_are_proven(name: str) -> None:
    result = climb(subject(exported(name)), pixels())
    assert result.differences == ()


@pytest.mark.usefixtures("one_batch_size")
def test_a_right_export_with_uint8_input_is_proven() -> None:
    assert climb(subject(exported("uint8"), uint8=True), pixels()).proven
    wrong = changed(exported("uint8").traced, "embed.shift", lambda a: a + 20)
    assert "onnx differs" in refusal(
        climb(replace(subject(exported("uint8"), uint8=True), traced=wrong), pixels())
    )


@pytest.mark.usefixtures("one_batch_size")
def test_a_threshold_of_zero() -> None:
    """Its limit is a 0 like others in the graph, and is still the threshold's alone."""
    backbone = tiny_vit(depth=2, class_token=False, global_pool="avg")
    made = export(backbone, threshold_plan(backbone, 0.0))
    assert climb(subject(made), pixels()).differences == ()


@pytest.mark.parametrize("theta", [-2.0, 2.0])
@pytest.mark.usefixtures("one_batch_size")
def test_another_threshold_in_one_block_is_found_there(theta: float) -> None:
    good = subject(exported("class token"))
    wrong = changed(good.traced, "blocks.1.limit", lambda a: a * 0 + similarity_limit(theta))
    text = refusal(climb(replace(good, traced=wrong), pixels()))
    assert text.startswith("the export is not proven: onnx differs on images, batch 3: block 2 ")
    assert "tokens of image 0, the reference" in text
    assert "margin of" in text


@pytest.mark.usefixtures("one_batch_size")
def test_other_keys_in_one_block_are_found_there() -> None:
    good = subject(exported("frozen"))

    def noise(array: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(0)
        return array + 0.3 * rng.standard_normal(array.shape).astype(np.float32)

    wrong = changed(good.traced, "blocks.0.k.weight.T", noise)
    text = refusal(climb(replace(good, traced=wrong), pixels()))
    assert "onnx differs on images, batch 3: block 1 merges other tokens of image " in text


@pytest.mark.usefixtures("one_batch_size")
def test_a_shipped_graph_that_is_not_the_traced_one_is_found() -> None:
    good = subject(exported("class token"))
    wrong = changed(good.shipped, "head.model.head.bias", lambda a: a + np.float32(0.01))
    result = climb(replace(good, shipped=wrong), pixels())
    assert {found.rung for found in result.differences} == {"shipped onnx"}
    assert "shipped onnx differs" in refusal(result)
    assert "logits of image" in refusal(result)
    assert result.facts()["proven"] is False


@pytest.mark.usefixtures("one_batch_size")
def test_a_difference_just_above_the_tolerance_is_found_and_one_below_is_not() -> None:
    good = subject(exported("class token"))
    for shift, proven in ((3e-5, True), (3e-4, False)):
        wrong = changed(
            good.shipped, "head.model.head.bias", lambda a, shift=shift: a + np.float32(shift)
        )
        assert climb(replace(good, shipped=wrong), pixels()).proven is proven


@pytest.mark.usefixtures("one_batch_size")
def test_logits_that_are_not_finite_are_found() -> None:
    good = subject(exported("class token"))
    wrong = changed(good.shipped, "head.model.head.bias", lambda a: a * np.float32("nan"))
    assert "logits are not finite" in refusal(climb(replace(good, shipped=wrong), pixels()))


@pytest.mark.usefixtures("one_batch_size")
def test_another_model_is_not_proven() -> None:
    good = subject(exported("class token"))
    refusal(climb(replace(good, model=loaded(tiny_vit(seed=1), HOW)), pixels()))


def test_cases_cover_what_they_say() -> None:
    images = pixels()
    found = list(cases(images))
    assert {(case.kind, case.batch) for case in found} == {
        *((kind, batch) for kind in ("images", "flat", "noise") for batch in (1, 3, 8)),
        *(("repeated", batch) for batch in (3, 8)),
    }
    for case in found:
        for candidate in case.candidates:
            assert candidate.shape == (case.batch, 48, 48, 3) and candidate.dtype == np.uint8
            spread = candidate.reshape(case.batch, -1, 3)
            if case.kind == "flat":
                assert (spread == spread[:, :1]).all()
            if case.kind == "repeated":
                assert (candidate == candidate[:1]).all()
    few = {(case.kind, case.batch): case for case in cases(images[:2])}
    assert few["images", 8].candidates[0].shape == (8, 48, 48, 3)


def test_ill_conditioned_logits_may_differ_by_their_own_noise_and_no_more() -> None:
    ours = np.array([[3.0, 1.0, 0.0], [0.0, 5.0, 1.0]])

    def compared(gap: float, noise: float) -> str | None:
        theirs = ours + np.array([[0.0, 0.0, gap], [0.0, 0.0, 0.0]])
        own = {"logits": np.full(2, noise)}
        return compare.compare_output(spec_of(3), ours, theirs, lambda: own)

    assert compared(9e-5, 0.0) is None
    assert compared(2e-4, 6e-5) is None
    assert "image 0 differ by 2.00e-04 (at most 1.0e-04)" in str(compared(2e-4, 2e-6))
    assert "at most 1.0e-03" in str(compared(2e-3, 1.0))
    assert compared(float("nan"), 1.0) == "logits are not finite"
