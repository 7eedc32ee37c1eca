"""Parts of one's own that a config can name, each in a file."""
