"""Sphinx configuration: Markdown pages (MyST), the API reference from the docstrings, the furo theme."""

import django.conf

import jetsocket

django.conf.settings.configure(JETSOCKET={"default": {}})  # the reference looks at its pools

project = "jetsocket"
author = "jetsocket contributors"
copyright = f"2026, {author}"
release = version = jetsocket.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nitpicky = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

default_role = "py:obj"  # `name` in a docstring: a link where there is something to link to

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_title = f"jetsocket {release}"
