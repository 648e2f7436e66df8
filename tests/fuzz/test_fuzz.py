from pathlib import Path

import pytest
from frame import Runner


NUMBERS = {"fuzz_models": 32}  # each takes longer
FILES = sorted(Path(__file__).parent.glob("fuzz_*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_damaged_inputs_are_read_rightly_or_refused_by_name(file):
    with Runner(file) as runner:
        outcomes = list(runner.run(range(NUMBERS.get(file.stem, 100))))
    faults = [str(outcome) for outcome in outcomes if outcome.is_fault]
    assert not faults, "\n".join(faults)
    assert {"read", "refused"} <= {outcome.kind for outcome in outcomes}
