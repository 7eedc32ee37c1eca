"""Decoder, towers and their fusion in one root module, and how its weights are stored."""
