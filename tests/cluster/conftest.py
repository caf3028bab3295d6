"""One stack for all tests that need a cluster of several hosts; each of them leaves it whole."""

import hosts
import pytest
import stack as stacks
from running import Searches


@pytest.fixture(scope="session")
def stack():
    absent = hosts.missing() or stacks.missing()
    if absent:
        pytest.skip(absent)
    made = stacks.Stack()
    yield made
    made.close()


@pytest.fixture(scope="session")
def search():
    """Options of the search that some tests disturb."""
    return [*stacks.SEARCH, *stacks.places()]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The folder of the same search on this machine alone, which those on the cluster must equal."""
    place, searches = tmp_path_factory.mktemp("undisturbed"), Searches()
    try:
        code, _, err = searches.run(place, *stacks.SEARCH, "--name", "calm")
    finally:
        searches.close()
    assert (code, err) == (0, "")
    return place / "runs" / "calm"
