"""The ``evalharness`` command: finds the verb and turns errors into one line and an exit code.

Exit codes: 0 all done; 1 something failed and the tables say so; 2 the user must change something;
70 a defect of this program; 130 interrupted; ``check`` has two more (``evalharness.cli.check``).
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import TextIO, cast

from evalharness.errors import UserError, is_storage_error, unknown
from evalharness.redaction import redact_text
from evalharness.visible import VisibleStream, visible

__all__ = ["VERBS", "main"]

# Verb -> what it does. Each lives in ``evalharness.cli.<verb>`` and is imported only when used.
VERBS = {
    "run": "quantize, generate, score and report; again to resume or to add methods",
    "ls": "list methods, models, protocols, metrics, reporters or papers",
    "score": "score a run folder again where something changed, or any folder of videos",
    "export": "the videos and scores of a run in VBench's form",
    "report": "write the tables and the page of a run folder again",
    "leaderboard": "merge: runs of several people as one, with provenance; against: one method beside all",
    "compare": "two runs or two cells: differences, intervals, p-values, winners and losers",
    "check": "hold a run against a reference and gates; the exit code says whether it passes",
    "plan": "how many prompts or seeds it takes to tell two methods apart",
    "data": "encode clips and captions to train a video model on",
    "fetch": "download a model's weights, or make the environment of the package vbench",
    "doctor": "what this machine can run, and how to install what is missing",
}


CRASHED = 70  # EX_SOFTWARE: 1 is what `check` calls a regression


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            with contextlib.redirect_stdout(cast(TextIO, VisibleStream(sys.stdout))):
                return _dispatch([argument for argument in arguments if argument != "--debug"])
    except KeyboardInterrupt:
        _complain("interrupted; what is finished is kept, and the same command resumes")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except Exception as error:
        if debug:
            raise
        if isinstance(error, UserError) or (isinstance(error, OSError) and is_storage_error(error)):
            _complain(f"error: {_line(error)}")
            return 2
        _complain(traceback.format_exc().rstrip("\n"))
        return CRASHED


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from evalharness.versions import package_version

        sys.stdout.write(f"evalharness {package_version('evalharness') or '(not installed)'}\n")
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS, "See: evalharness --help")
    code: int = importlib.import_module(f"evalharness.cli.{verb}").execute(arguments[1:])
    return code


def _usage() -> str:
    verbs = "".join(f"  {verb:<12}{text}\n" for verb, text in VERBS.items())
    return (
        "usage: evalharness VERB [options]\n\n"
        "Benchmark for quantized video diffusion models.\n\n"
        f"verbs:\n{verbs}\n"
        "evalharness VERB --help shows the options of a verb; --debug shows tracebacks.\n"
        "example: evalharness run --methods qvgen,lsq --bits 3\n"
    )


def _line(error: BaseException) -> str:
    if isinstance(error, OSError) and not isinstance(error, UserError):
        name = error.filename or "the disk"
        return f"{name}: {error.strerror}; mend that and run the same command again, finished work is kept"
    return " ".join(str(error).split())


def _complain(line: str) -> None:
    sys.stderr.write(visible(redact_text(line)) + "\n")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _complain(f"warning: {message}")
