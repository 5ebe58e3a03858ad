"""A command or process that fails a test shows all that it printed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.runs import ended, run_command

HURT = "import sys; print('so far'); print('it hurts', file=sys.stderr); sys.exit(3)"


def test_a_failed_command_shows_its_output_and_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert "deit_s" in run_command("list")
    assert "deit_s" in capsys.readouterr().out
    run_command("list", "deit_xs", code=2)
    with pytest.raises(pytest.fail.Exception) as caught:
        run_command("list", "deit_xs")
    text = str(caught.value)
    assert "atm-export list deit_xs\nended with 2, not 0" in text
    assert "unknown model" in text.partition("-- stderr")[2]


def test_a_failed_process_shows_its_output_and_error() -> None:
    for text in (True, False):
        done = subprocess.run([sys.executable, "-c", HURT], capture_output=True, text=text)
        assert ended(done, 3) == "so far\n"
        with pytest.raises(pytest.fail.Exception, match=r"ended with 3, not 0\n-- stdout\nso far"):
            ended(done)
        with pytest.raises(pytest.fail.Exception, match=r"-- stderr\nit hurts"):
            ended(done)
