"""The root module: a decoder, its towers, what tunes them, and how they are saved, exported and asked."""
