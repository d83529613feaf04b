"""``evalharness run``: flags and YAML into a plan, and the plan into a run folder."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NoReturn, get_type_hints

from jsonargparse import ActionYesNo, ArgumentParser

from evalharness.cli.parsing import helpful_error
from evalharness.config import RunConfig
from evalharness.console import Console
from evalharness.plan import build_plan
from evalharness.recipe_file import check_recipe, config_files
from evalharness.registry import Registry
from evalharness.variants import split_names

__all__ = ["execute", "parse_config"]

_DESCRIPTION = (
    "Quantize, generate, score, measure and report. Running the same command again does only what is "
    "missing; more methods, bits or seeds are added to the same folder."
)
_REPEATABLE = ("metric", "plugin", "set")


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        hints = {name: str(hint) for name, hint in get_type_hints(RunConfig).items()}
        expected = {name: text.removeprefix("<class '").removesuffix("'>") for name, text in hints.items()}
        raise helpful_error("evalharness run", message, flags, expected)


def execute(arguments: list[str]) -> int:
    """Run; returns the exit code."""
    config, dry_run = parse_config(arguments)
    if config.executor == "torchrun" and not dry_run:
        from evalharness.executors import torchrun

        return torchrun.once(partial(_execute, config, dry_run=False))
    return _execute(config, dry_run=dry_run)[0]


def _execute(config: RunConfig, *, dry_run: bool) -> tuple[int, bool]:
    """The exit code, and whether the same command would end the same way."""
    registry = Registry(config.plugin)
    plan = build_plan(config, registry)
    console = Console()
    if not split_names(config.methods):
        console.warn(
            "no --methods given: only full precision is planned; to see them: evalharness ls methods"
        )
    if plan.unscored:
        console.warn(
            f"no metric is installed for {', '.join(plan.unscored)}: made, but not scored; "
            "see: evalharness ls metrics"
        )
    for note in plan.notes:
        console.warn(note)
    if dry_run:
        from evalharness.dryrun import describe

        print(describe(plan, registry))
        return 0, True
    from evalharness.runner import run_plan

    summary = run_plan(plan, registry, console)
    console.say(summary.line())
    table = plan.output / "leaderboard.md"
    if table.is_file() and not summary.nothing_done:
        print(table.read_text(encoding="utf-8"))
    print(f"results: {plan.output}")
    if summary.failed:
        log = plan.output / "events.jsonl"
        console.say(f"{summary.failed} failed (details in {log}); the same command tries them again")
    return (1 if summary.failed else 0), summary.is_final


def parse_config(arguments: list[str]) -> tuple[RunConfig, bool]:
    """Flags over ``--config`` file over defaults, and whether ``--dry-run`` was given.

    Raises:
        UserError: an unknown flag or key, or a value of the wrong type.
    """
    parser = _Parser(prog="evalharness run", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    hints = get_type_hints(RunConfig)
    for field in dataclasses.fields(RunConfig):
        _add_flag(parser, field, hints[field.name])
    for path in config_files(arguments):
        check_recipe(path)
    values: dict[str, Any] = parser.parse_args(arguments).as_dict()
    values.pop("config", None)
    for name in _REPEATABLE:
        values[name] = [values[name]] if isinstance(values[name], str) else list(values[name])
    dry_run: bool = values.pop("dry_run")
    return RunConfig(**values), dry_run


def _add_flag(parser: _Parser, field: dataclasses.Field[Any], hint: Any) -> None:
    flag, text = f"--{field.name.replace('_', '-')}", field.metadata["help"]
    if field.name in _REPEATABLE:
        parser.add_argument(flag, action="append", default=[], help=text)
    elif hint is bool:
        parser.add_argument(flag, action=ActionYesNo(no_prefix="no-"), default=field.default, help=text)
    elif field.default is dataclasses.MISSING:
        parser.add_argument(flag, type=hint, default={}, help=text)
    else:
        aliases = field.metadata.get("aliases", ())
        parser.add_argument(flag, *aliases, type=hint, default=field.default, help=text)
