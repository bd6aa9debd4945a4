"""For whoever watches: history, logs, status, the local socket, the runs of a home."""
