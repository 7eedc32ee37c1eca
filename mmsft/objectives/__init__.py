"""What a batch and a model give as a loss."""

from mmsft.objectives.sft import Loss, sft

__all__ = ["Loss", "sft"]
