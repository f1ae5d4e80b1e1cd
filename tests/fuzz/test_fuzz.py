"""What fuzzing has found, and what it began with, read once more; `python -m benchmarks.fuzz` goes on from there."""

import pytest

from tests.fuzz.seeds import CORPUS
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_in_the_corpus_does_what_no_input_may(target):
    files = sorted((CORPUS / target).iterdir())
    assert files
    for file in files:
        TARGETS[target](file.read_bytes())
