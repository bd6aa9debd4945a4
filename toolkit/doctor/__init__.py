"""What ``hsee doctor`` looks at beside the broker: the machine, the installed parts, the data; and its support archive."""
