"""The command as a whole: quick, light, and clear about what it was not asked."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from natdeploy import __version__
from natdeploy.cli.main import main

HEAVY = {"torch", "torchvision", "numpy", "scipy", "sklearn", "onnx", "onnxruntime", "xgboost", "pymoo", "plotly", "rich"}


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["search", "--help"]])
def test_it_answers_without_heavy_libraries(arguments: list[str]) -> None:
    script = f"""
import sys
sys.argv = ["natdeploy", *{arguments!r}]
from natdeploy.cli.main import main
try:
    main()
finally:
    print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "[]\n")
    assert ("natdeploy " + __version__ if arguments == ["--version"] else "Usage: natdeploy") in result.stdout


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_it_answers_within_half_a_second(option: str) -> None:
    # Processor time, the least of three: what else this machine does at the moment is not the command's doing.
    command = [sys.executable, "-c", "from natdeploy.cli.main import main; main()"]

    def processor_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*command, option], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(processor_seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serch"], "No such command 'serch'"),
        (["report"], "Missing argument 'RUN'"),
        (["report", "run", "--colour"], "No such option: --colour"),
        (["search", "--threads", "many"], "Invalid value for '--threads'"),
        (["search", "--accelerator", "tpu"], "Invalid value for '--accelerator'"),
    ],
)
def test_wrong_usage_ends_with_2(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end() -> tuple[str, str]:
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        captured = capsys.readouterr()
        return captured.out, captured.err

    monkeypatch.setattr(sys, "argv", ["natdeploy", *arguments])
    output, error = end()
    assert output == ""
    assert said in error

    monkeypatch.setattr(sys, "argv", ["natdeploy", *arguments, "--json"])
    output, error = end()
    assert output == ""
    assert said in json.loads(error)["error"]
    assert json.loads(error)["exit_code"] == 2


def test_no_verb_shows_the_verbs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["natdeploy"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert "demo" in captured.out + captured.err
