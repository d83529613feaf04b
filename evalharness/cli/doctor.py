"""``evalharness doctor``: what this machine can run, and how to install what is missing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from evalharness.cli.parsing import Parser

__all__ = ["execute"]


def execute(arguments: list[str]) -> int:
    """Print the findings; exit code 0 if the default run works, else 1."""
    parser = Parser("doctor", "Check this machine. Exit code 0 when the default run works here.")
    parser.add_argument("--model", default="tinyworld", help="whose files to check")
    parser.add_argument("--weights", default=None, metavar="DIR", help="pipeline folder of the model")
    parser.add_argument("--protocol", default="", help="what to predict time and disk for (the model's)")
    parser.add_argument("--output", default=None, help="run folder to check (runs/<model>)")
    parser.add_plugins()
    parser.add_argument("--json", action="store_true", help="machine-readable")
    options = parser.parse_args(arguments)

    from evalharness.doctor import Status, examine
    from evalharness.modeloptions import ModelOptions
    from evalharness.registry import Registry

    asked = ModelOptions(weights=options.weights, protocol=options.protocol)
    output = Path(options.output or f"runs/{options.model}")
    checks = []
    for check in examine(Registry(options.plugin), options.model, output, asked):
        checks.append(check)
        if not options.json:
            print(f"{check.status.upper():<5}{check.name:<24} {check.detail}")
            if check.fix:
                print(f"{'':<29} fix: {check.fix}")
    failed = [check.name for check in checks if check.status is Status.FAIL]
    if options.json:
        print(json.dumps({"works": not failed, "checks": [dataclasses.asdict(c) for c in checks]}, indent=2))
    else:
        verdict = (
            f"the default run cannot work here: {', '.join(failed)}"
            if failed
            else "the default run works here"
        )
        print(f"\n{verdict}")
    return 1 if failed else 0
