"""The server's half of the network, and what a strategy makes of it: copies, a pool, means, segments made one."""
