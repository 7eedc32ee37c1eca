"""The kinds of media that a tower can read."""
