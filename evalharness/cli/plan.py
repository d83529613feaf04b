"""``evalharness plan``: how many prompts or seeds it takes to tell two methods apart."""

from __future__ import annotations

import json

from evalharness.cli.parsing import Parser
from evalharness.errors import UserError, unknown

__all__ = ["execute"]

_SEEDS = (1, 2, 3, 5, 10)


def execute(arguments: list[str]) -> int:
    """Print what the pilot can see and what a difference would need."""
    parser = Parser(
        "plan",
        "From a pilot run of two methods: the difference it could have found, and how many prompts or seeds "
        "another one needs. A and B as in compare.",
    )
    parser.add_argument("a", metavar="A", help="RUN:CELL, e.g. runs/tinyworld:qvgen-w3a3")
    parser.add_argument("b", metavar="B", help="RUN:CELL, the same prompts and seeds")
    parser.add_argument("--dimension", default="mean", metavar="D", help="one dimension (their mean)")
    parser.add_argument(
        "--effect", type=float, default=None, metavar="X", help="to find, in the tables' unit (the pilot's)"
    )
    parser.add_argument("--power", type=float, default=0.8, metavar="P", help="chance of finding it (0.8)")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    options = parser.parse_args(arguments)
    if not 0.0 < options.power < 1.0:
        raise UserError(f"--power {options.power}: expected between 0 and 1")
    if options.effect is not None and not 0.0 < abs(options.effect) < float("inf"):
        raise UserError(f"--effect {options.effect}: expected a number other than 0")

    from evalharness.compare.selection import pairs, read_side
    from evalharness.effects import components, effect, table
    from evalharness.power import Design, detectable, prompts_needed, seeds_needed, simulated_power

    a, b = read_side(options.a), read_side(options.b)
    found, _, _ = pairs(a, b)
    if len(found) != 1:
        raise UserError(f"{len(found)} rows are in both; name one cell of each, as RUN:CELL")
    names = a.results.dimensions
    if options.dimension not in ("mean", *names):
        raise unknown("dimension", options.dimension, ("mean", *names))
    differences = found[0].differences(names if options.dimension == "mean" else [options.dimension])
    z, _ = table(differences)
    seeds, prompts = z.shape
    if prompts < 2:
        raise UserError(f"{options.dimension}: {prompts} common prompts; a pilot needs two at least")
    scale = 100.0 if a.results.percent else 1.0
    pilot = effect(differences)
    assert pilot.value is not None
    wanted = pilot.value if options.effect is None else options.effect / scale
    design = Design(components=components(z), power=options.power)
    smallest = detectable(design, prompts, seeds)
    needed = {s: prompts_needed(design, wanted, s) for s in _SEEDS if s <= 1 or seeds > 1}
    tried = {s: simulated_power(design, wanted, p, s) for s, p in needed.items() if p is not None}
    record = {
        "dimension": options.dimension,
        "unit": "points of 100" if a.results.percent else "raw score",
        "power": options.power,
        "prompts": prompts,
        "seeds": seeds,
        "difference": pilot.value * scale,
        "p": pilot.p,
        "deviation": {k: v**0.5 * scale for k, v in design.components._asdict().items()},
        "detectable": smallest * scale,
        "detectable_tried": simulated_power(design, smallest, prompts, seeds)[0],
        "effect": abs(wanted) * scale,
        "prompts_needed": {str(s): number for s, number in needed.items()},
        "tried": {str(s): {"found": share, "runs": runs} for s, (share, runs) in tried.items()},
        "seeds_needed": seeds_needed(design, wanted, prompts) if seeds > 1 else None,
    }
    print(json.dumps(record, indent=1) if options.json else _text(record))
    return 0


def _text(record: dict[str, object]) -> str:
    from evalharness.compare.text import p_text
    from evalharness.power import MAX_PROMPTS

    deviation, needed, tried = record["deviation"], record["prompts_needed"], record["tried"]
    p = record["p"]
    assert isinstance(deviation, dict) and isinstance(needed, dict) and isinstance(tried, dict)
    assert isinstance(p, float)
    several = record["seeds"] != 1
    parts = ", ".join(f"{name} {value:.2f}" for name, value in deviation.items() if several or value)
    lines = [
        f"pilot: {record['dimension']}, {record['prompts']} prompts, {record['seeds']} seeds, in "
        f"{record['unit']}: difference {record['difference']:+.2f}, p {p_text(p)}",
        f"standard deviations of a difference: {parts}",
        f"with {record['power']:.0%} power this pilot could find {record['detectable']:.2f} (found in "
        f"{record['detectable_tried']:.0%} of simulated runs)",
        f"to find {record['effect']:.2f} at that power (in brackets: how often simulated runs of that size "
        "found it):",
    ]
    for seeds, prompts in needed.items():
        if prompts is not None:
            shown = f"{prompts} prompts ({tried[seeds]['found']:.0%} of {tried[seeds]['runs']})"
        elif seeds == "1" or not deviation["seed"]:
            shown = f"more than {MAX_PROMPTS:,} prompts"
        else:
            shown = "no number of prompts is enough: seeds differ too much"
        label = f"{seeds} seeds" if seeds != "1" else "1 seed, to speak of that one only"
        lines.append(f"  {label}: {shown}")
    if several:
        seeds_needed = record["seeds_needed"]
        lines.append(
            f"  {record['prompts']} prompts: "
            + (f"{seeds_needed} seeds" if seeds_needed else "no number of seeds")
        )
    else:
        lines.append("one seed tells nothing of how seeds differ: the numbers hold for this seed")
    return "\n".join(lines)
