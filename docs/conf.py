"""The site: hand-written pages, the tutorials with their stored outputs, and pages made from the code (`generate`)."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ.setdefault("MPLBACKEND", "Agg")

import generate  # noqa: E402

import pyrocrl  # noqa: E402

project = "PyroCRL"
author = "the PyroCRL authors"
copyright = "the PyroCRL authors, Apache-2.0"
version = release = pyrocrl.__version__

extensions = ["sphinx.ext.autodoc", "myst_nb"]
exclude_patterns = ["_build"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tutorials are run by the tests, and shown as they were stored
nb_merge_streams = True

autoclass_content = "both"  # options of a model are told in __init__
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
add_module_names = False

html_theme = "furo"
html_title = "PyroCRL"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["site.css"]
pygments_style = "tango"


def setup(app):
    app.connect("config-inited", lambda app, config: generate.write(HERE))
    app.connect("source-read", generate.process_source)
    app.connect("autodoc-process-signature", generate.process_signature)
    app.connect("autodoc-process-docstring", generate.process_docstring)
