"""Sphinx: ``make docs`` builds the site into build/site; a broken link or reference is an error."""

import cellglot


project = "cellglot"
author = "The cellglot developers"
version = release = cellglot.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_templates"]
templates_path = ["_templates"]
default_role = "code"  # docstrings name code between single backquotes, as those of transformers do

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # the parameters' texts have the types
autodoc_inherit_docstrings = False
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

nitpick_ignore_regex = [("py:(class|exc)", ".*")]  # types in docstrings are words for readers: "AnnData or path"

html_theme = "furo"
html_title = f"cellglot {version}"
html_copy_source = html_show_sourcelink = False
html_show_copyright = False
copybutton_exclude = ".linenos, .gp"
