"""Adds the model that comes with the package to the documentation, as a script for the page draw.md."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from mnist_jax.inference.browser import packaged_script


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds draw-model.js to the files of the documentation; MkDocs calls this once per build."""
    files.append(File.generated(config, 'draw-model.js', content=packaged_script()))
    return files
