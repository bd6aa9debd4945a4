"""The exported model on disk: manifest, digests."""
