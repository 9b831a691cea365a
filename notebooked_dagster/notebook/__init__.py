"""Read a notebook and understand it: cells, tags, names, stages, slices, hashes, lint."""
