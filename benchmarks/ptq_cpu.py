"""How long post-training quantization of tinyworld takes on a CPU, calibration included.

    python benchmarks/ptq_cpu.py --output ptq_cpu.json

Each method begins twice: in an empty calibration folder, and in the one that it has just filled, as the
next bit width of a run finds it. See ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from evalharness.session import Session

METHODS = ("viditq", "svdquant", "gptq")
TARGETS_S = {"viditq": 30.0, "svdquant": 60.0}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--bits", type=int, default=4, help="of weights and activations")
    parser.add_argument("--prompts", type=int, default=16, help="calibration prompts; 16 is the methods' own")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--output", type=Path, default=Path("ptq_cpu.json"))
    return parser.parse_args(argv)


def measure(session: Session, name: str, bits: int, prompts: int) -> dict[str, Any]:
    """Seconds from the full-precision transformer to the quantized one, without and with calibration made."""
    from evalharness.api import Bits
    from evalharness.cells import Cell, build_method
    from evalharness.stages.context import StageContext

    options = {} if prompts == 16 else {"prompts": prompts}
    cell = Cell(model="tinyworld", method=name, bits=Bits(bits, bits), seed=0, options=options)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            context = StageContext(session, 0, Path(folder) / "log.jsonl", None, Path(folder) / "calibration")
            session.calibration = ("", False, {})  # what a worker keeps in memory
            module = session.fresh_transformer()
            start = time.perf_counter()
            build_method(session.registry, cell).apply(module, context)
            seconds.append(time.perf_counter() - start)
    first, again = seconds
    return {"seconds": first, "seconds_calibrated": again, "target_s": TARGETS_S.get(name)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all methods; results are written after each."""
    from benchmarks.measuring import surroundings, write_json
    from evalharness.executor import WorkerSpec
    from evalharness.session import Session

    given = arguments(argv)
    torch.set_num_threads(given.threads)
    session = Session(WorkerSpec(model="tinyworld", protocol="tinyworld", device="cpu", skip_layers="std"))
    session.fresh_transformer()  # loading the model is not what is asked
    methods: dict[str, Any] = {}
    results = {
        **surroundings(torch.device("cpu")),
        "model": "tinyworld", "bits": given.bits, "prompts": given.prompts, "threads": given.threads,
        "methods": methods,
    }  # fmt: skip
    for name in given.methods.split(","):
        methods[name] = measure(session, name, given.bits, given.prompts)
        write_json(given.output, results)
        found = methods[name]
        print(f"{name}: {found['seconds']:.1f} s, calibrated {found['seconds_calibrated']:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
