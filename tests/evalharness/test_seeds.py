"""Seeds of videos, against values worked out with ``printf '0:0042:3' | sha256sum``."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evalharness.seeds import video_seed


def test_known_values() -> None:
    assert video_seed(0, "0042", 3) == 0x27B97DFCA7798F70
    assert video_seed(1, "0042", 3) == 0x43BCD5959CE91F46


@given(st.integers(0, 2**40), st.text(min_size=1), st.integers(0, 1000))
def test_fits_a_signed_64_bit_integer_and_repeats(base: int, prompt: str, index: int) -> None:
    seed = video_seed(base, prompt, index)
    assert 0 <= seed < 2**63
    assert seed == video_seed(base, prompt, index)


def test_differs_by_base_prompt_and_index() -> None:
    seeds = {video_seed(base, prompt, i) for base in range(5) for prompt in ("a", "b") for i in range(5)}
    assert len(seeds) == 50
