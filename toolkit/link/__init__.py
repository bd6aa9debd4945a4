"""Links: how protocol messages travel."""
