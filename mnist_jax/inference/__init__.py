"""Applies trained models to images: restore, predict, export, and a server with a page to draw on."""
