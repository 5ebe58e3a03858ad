"""The runtime's own commands, for installs without the exporter: no dependency but its own.

python -m atm_export.runtime verify RUN
python -m atm_export.runtime classify RUN IMAGE...
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from atm_export.errors import AtmExportError


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code of the error tree."""
    options = _parser().parse_args(arguments)
    try:
        code = _verify(options) if options.command == "verify" else _classify(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except AtmExportError as error:
        print(f"atm-export: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m atm_export.runtime", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("verify", "check a run folder"), ("classify", "label images")):
        command = commands.add_parser(name, help=text)
        command.add_argument("run", help="the folder that `atm-export MODEL` wrote")
        command.add_argument("--backend", help="onnxruntime (default), openvino")
        command.add_argument("--providers", help="in order, such as cuda,cpu")
        command.add_argument("--threads", type=int, default=0, help="0: all cores")
        if name == "classify":
            command.add_argument("images", nargs="+")
            command.add_argument("--top-k", type=int, default=5)
    return parser


def _providers(options: argparse.Namespace) -> list[str] | None:
    return options.providers.split(",") if options.providers else None


def _verify(options: argparse.Namespace) -> int:
    from atm_export.runtime.prove import verify

    checked = verify(
        options.run,
        backend=options.backend,
        providers=_providers(options),
        threads=options.threads,
    )
    print("\n".join(checked.lines))
    checked.require()
    return 0


def _classify(options: argparse.Namespace) -> int:
    from atm_export.runtime import load

    session = load(
        options.run,
        backend=options.backend,
        providers=_providers(options),
        threads=options.threads,
    )
    for path in options.images:
        print(path)
        for label in session.classify(path, options.top_k)[0]:
            print(f"  {label.probability:7.2%}  {label.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
