import pytest
from model_records import RECORDS


@pytest.fixture(params=RECORDS, ids=str)
def record(request):
    """A record of each model in turn."""
    return request.param


@pytest.fixture
def model(record, request):
    """The record's model on its family's tiny configuration, the same weights each time."""
    return record.model(request.getfixturevalue)
