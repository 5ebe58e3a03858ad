"""Marks of tests that need what may be absent; looking for it imports nothing."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason='openvino is not installed (pip install ".[openvino]")'
)
