"""Damaged files and random params: a right export or a refusal with a code of its own, and never
`internal`. `scripts/fuzz-media` goes on for as long as one likes.
"""

import random
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from fuzz_media import damaged, sources, tried

ROUNDS = 60


def test_no_file_and_no_params_are_an_internal_error(tmp_path, measured):
    """The same rounds each time, so that a failure can be looked into."""
    bodies = {path: path.read_bytes() for path in sources()}
    outcomes = Counter()
    for number in range(ROUNDS):
        dice = random.Random(number)
        body = damaged(bodies[dice.choice(list(bodies))], dice)
        outcome, params = tried(body, dice, tmp_path)
        assert not outcome.startswith(("internal", "wrong", "execution_timeout")), (
            number,
            outcome,
            params,
        )
        outcomes[outcome] += 1
    assert outcomes["exported"] > ROUNDS / 10
    measured(f"fuzz: {ROUNDS} rounds, {dict(outcomes)}")
