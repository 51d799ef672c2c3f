"""One set of processes for every test here: starting them is what costs."""

import pytest
from pool import Pool


@pytest.fixture(scope="session")
def pool():
    pool = Pool(4)
    yield pool
    pool.close()
