"""The simulator: production coordinator, agents, ledger and checkpoints over a virtual clock, network and disk."""
