"""Pages that are drawn from the code: commands, the C header, exit codes, changes."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from atm_export import errors
from atm_export.cli import app

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
# Lines of the header that guard or decorate.
GUARD = re.compile(
    r"#(if|ifdef|ifndef|else|endif|include)\b|#define ATM_(API|LOCAL|RUNTIME_H)\b|extern \"C\"|}$"
)
INTRO = "Drawn from the command line itself: `atm-export --help`, `atm-export COMMAND --help`."
HEADER = "runtime/cpp/include/atm_runtime/atm_runtime.h"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Pages lie beside mkdocs.yml, where they are read without the site too."""
    config.docs_dir = str(DOCS)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that no file holds."""
    for name, content in drawn_pages().items():
        files.append(File.generated(config, name, content=content))
    return files


def drawn_pages() -> dict[str, str]:
    """Markdown by path."""
    header = (ROOT / HEADER).read_text(encoding="utf-8")
    return {
        "reference/cli.md": commands(),
        "reference/c.md": c_interface(header),
        "reference/exit-codes.md": exit_codes(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }


def commands() -> str:
    """Every subcommand and option, as the command line itself knows them."""
    text = app.generate_docs(output_format="markdown", heading_level=1)
    listed = re.compile(r"## Table of Contents\n.*?(?=\n\*\*Commands)", re.S)
    return listed.sub(f"{INTRO}\n\n## atm-export MODEL\n", text, count=1).replace(
        "# atm-export\n", "# Commands\n", 1
    )


def c_interface(header: str) -> str:
    """The header's declarations, each group under the comment that precedes it."""
    parts = [
        "# C",
        f"Drawn from `{HEADER}`. How to build, link and install: [C++](../howto/cpp.md).",
    ]
    kept = [line for line in header.splitlines() if not GUARD.match(line)]
    for block in re.split(r"\n\s*\n", "\n".join(kept)):
        comment = re.match(r"\s*/\*(.*?)\*/\s*", block, re.S)
        words = re.sub(r"\n\s*\* ?", "\n", comment[1]).strip() if comment else ""
        words = words.replace("<", "&lt;")
        code = block[comment.end() :].strip() if comment else block.strip()
        parts += [words] if words else []
        parts += [f"```c\n{code}\n```"] if code else []
    return "\n\n".join(parts) + "\n"


def exit_codes() -> str:
    """The tree of errors, whose numbers are the exit codes."""
    head, _, tree = str(errors.__doc__).partition("\n\n")
    return (
        f"# Exit codes\n\n{head} 0 is success. Every error is one line on standard error that says "
        "what, where and how to mend it; in Python the same classes are raised "
        f"(`atm_export.errors`).\n\n```text\n{tree.strip()}\n```\n"
    )
