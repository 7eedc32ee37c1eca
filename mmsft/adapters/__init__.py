"""The modules between a tower and the language model."""
