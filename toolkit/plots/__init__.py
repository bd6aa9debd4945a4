"""What a run looks like: drawings of what its folder holds; only this room knows matplotlib."""
