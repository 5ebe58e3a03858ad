#!/usr/bin/env bash
# The checks of this project, the same locally and in CI: format, lint, types, tests, C++.
# Usage: tools/check.sh [pytest arguments]    -m "not engines": those marked slow too
set -euo pipefail
cd "$(dirname "$0")/.."
ruff format --check .
ruff check .
mypy
pytest "$@"
tools/check_cpp.sh -m "not slow"
