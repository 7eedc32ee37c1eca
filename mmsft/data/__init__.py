"""From a data row to a batch: sources, formats, templates, encoding, order and loading."""
