"""Which pretrained models of the installed timm can be exported, and why others cannot.

    python tools/timm_models.py            # looks at every tag; docs/results/timm.json and the page
    python tools/timm_models.py --check    # exit code 1 where the page says something else

Every tag is built without memory for its weights and shown to the rule that `timm:NAME` is checked
by. The page is docs/reference/timm.md.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import timm
import torch
from results import FOLDER, ROOT

from atm_export.config import ModelSpec
from atm_export.errors import UnsupportedModelError
from atm_export.model.embedding import embedding_of
from atm_export.model.vit import refuse_unsupported
from atm_export.model_configs import load_model_config

FILE, PAGE = FOLDER / "timm.json", ROOT / "docs" / "reference" / "timm.md"
# Transformers over one sequence of tokens, by class; others have windows, stages or convolutions.
SEQUENCES = (
    *("VisionTransformer", "VisionTransformerDistilled", "Eva", "Beit", "VisionTransformerRelPos"),
    *("NaFlexVit", "Cait", "Xcit", "VOLO", "VisionTransformerSAM"),
    *("Qwen3VitClassifier", "Qwen3VitEncoder", "DeepseekVitClassifier", "DeepseekVitEncoder"),
    *("Gemma4VitClassifier", "Gemma4VitEncoder"),
)


def row_of(tag: str) -> dict[str, Any]:
    """A pretrained tag: the class of its model, and if that is a sequence of tokens what it answers
    and why it is refused (None: it is not)."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = timm.create_model(tag, pretrained=False)
    kind = _kind(model)
    if kind not in SEQUENCES:
        return {"tag": tag, "class": kind}
    reason = _refusal(model)
    return {"tag": tag, "class": kind, "answers": _answers(model, tag), "refused": reason}


def _kind(model: Any) -> str:
    """Its class, or the nearest one above it that is a sequence of tokens."""
    names = [each.__name__ for each in type(model).__mro__]
    return next((name for name in names if name in SEQUENCES), names[0])


def _refusal(model: Any) -> str | None:
    try:
        refuse_unsupported(model, "it")
    except UnsupportedModelError as error:
        return str(error).removeprefix("it is not supported: ").partition("; plain ones")[0]
    return None


def _answers(model: Any, tag: str) -> str:
    spec = ModelSpec(
        name=f"timm:{tag}", config=load_model_config(f"timm:{tag}"), weights="random", task="auto"
    )
    cfg = timm.get_pretrained_cfg(tag)
    embeds = not model.num_classes or (
        hasattr(model, "global_pool") and embedding_of(model, spec, tag, cfg) is not None
    )
    return "embedding" if embeds else "classes"


def page_of(found: dict[str, Any]) -> str:
    """The page that says what is in the file."""
    rows = [row for row in found["rows"] if row["class"] in SEQUENCES]
    accepted = [row for row in rows if row["refused"] is None]
    others = len(found["rows"]) - len(rows)
    share = 100 * len(accepted) / len(rows)
    return f"""# timm's pretrained models

Of the {len(found["rows"])} pretrained tags of timm {found["timm"]}, {len(rows)} are transformers
over one sequence of tokens. **{len(accepted)} of those ({share:.1f} %) can be exported** as
`timm:NAME`; the others are refused in one line. The other {others} tags have windows, stages or
convolutions, and are refused too. Written by `tools/timm_models.py`, which builds every one and
asks the rule that exports ask.

## By class

{_table(("class", "tags", "accepted"), _classes(rows))}
## Why others are refused

{_table(("reason", "tags", "names"), _reasons(rows))}
## Accepted

{_table(("name", "answers", "tags"), _names(accepted))}"""


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _classes(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    tags = Counter(row["class"] for row in rows)
    good = Counter(row["class"] for row in rows if row["refused"] is None)
    return [(f"`{name}`", tags[name], good[name]) for name in SEQUENCES if tags[name]]


def _reasons(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["refused"] is not None:
            found.setdefault(row["refused"], []).append(row["tag"].partition(".")[0])
    ranked = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        (reason, len(tags), ", ".join(f"`{name}`" for name in sorted(set(tags))))
        for reason, tags in ranked
    ]


def _names(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        name, _, tag = row["tag"].partition(".")
        found.setdefault((name, row["answers"]), []).append(tag)
    return [
        (f"`{name}`", answers, ", ".join(f"`{tag}`" for tag in sorted(tags) if tag))
        for (name, answers), tags in sorted(found.items())
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare the page with the file")
    if parser.parse_args(arguments).check:
        told = page_of(json.loads(FILE.read_text(encoding="utf-8")))
        if PAGE.read_text(encoding="utf-8") == told:
            return 0
        print(f"{PAGE.name} is not what {FILE.name} says; run tools/timm_models.py")
        return 1
    tags, rows = timm.list_pretrained(), []
    for i, tag in enumerate(tags):
        rows.append(row_of(tag))
        if i % 50 == 0:
            print(f"{i} of {len(tags)}", flush=True)
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    text = f'{{\n "timm": "{timm.__version__}",\n "rows": [\n  {lines}\n ]\n}}\n'
    FILE.write_text(text, encoding="utf-8")
    PAGE.write_text(page_of(json.loads(text)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
