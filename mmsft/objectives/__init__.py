"""What a batch and a model give as a loss."""
