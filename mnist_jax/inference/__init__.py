"""A trained model applied to images: predict, export, serve."""
