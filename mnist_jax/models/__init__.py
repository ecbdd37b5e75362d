"""Architectures, the layers that they are made of, and the table of a model's layers."""
