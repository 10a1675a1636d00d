"""Sphinx: the API reference, built from the docstrings by ``tox -e docs``."""

from importlib.metadata import version as version_of

from django.conf import settings

settings.configure()  # autodoc looks at every name of a module, and Django's settings answer only then

project = "scalezero_wsgi"
version = release = version_of(project)
extensions = ["sphinx.ext.autodoc"]
html_theme = "alabaster"
html_show_copyright = False
html_show_sourcelink = False

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # a default as it is written: an object's repr() may name this machine
python_maximum_signature_line_length = 100
add_module_names = False

# What a docstring names of this package must be on a page. Types of a signature need not be: those of other
# libraries, those imported for the type checker alone, which have no module here, and internal ones.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!scalezero_wsgi\.).*"),
    (
        "py:class",
        r"scalezero_wsgi\.(activation|coordination\.peers|providers\.process\.provider|savings|servers|web)\..*",
    ),
]
