"""Weights of other origin: files, names of arrays, architectures read from shapes, position embeddings."""
