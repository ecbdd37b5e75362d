"""Architectures, the layers that they are made of, and the table of these."""
