"""The training loop, its optimiser and its schedule."""
