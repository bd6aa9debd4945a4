"""What a split run is compared with: other ways to train the same network on the same split, seed and epochs."""
