"""The toy model of the tests as a file for ``--plugin``: a whole run takes a second."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests" / "plugin_package"))

from toybench.methods import ToyRound, ToyTrain
from toybench.metrics import Brightness, Motion
from toybench.model import ToyModel
from toybench.protocol import ToyProtocol

PLUGINS = {
    "methods": {"toy-round": ToyRound, "toy-train": ToyTrain},
    "models": {"toy": ToyModel},
    "protocols": {"toy": ToyProtocol},
    "metrics": {"toy.brightness": Brightness, "toy.motion": Motion},
}
