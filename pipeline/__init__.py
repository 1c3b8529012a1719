"""Morphline: from a few pictures to a smooth, tracked, reproducible morph."""
