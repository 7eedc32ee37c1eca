"""Pages of one file: what a row, a recipe or a run is made of, for a browser."""
