"""Instruction-tune a language model on text, images, or a modality of your own."""
