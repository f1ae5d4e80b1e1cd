import pytest

from tests.grpo import tiny


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    with tiny.optimizations(False):
        yield
