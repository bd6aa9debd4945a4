"""A run on disk: its folder and record, the ledger, checkpoints. Nothing here imports another room."""
