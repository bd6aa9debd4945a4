"""docs/reference.md is what the code says of itself."""

from tests.layout.reference import PAGE, STATUSES, reference
from tests.unit.test_errors import every_error


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == reference(), "write it anew: python -m tests.layout.reference"


def test_every_exit_status_is_explained():
    assert {kind.exit_status for kind in every_error()} <= set(STATUSES)
