"""Ways to tune a decoder with few parameters."""
