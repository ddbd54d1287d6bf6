"""Sphinx's configuration of the report; tokenarium.report.site runs it with the pages it wrote."""

from pathlib import Path

_HERE = Path(__file__).parent

project = "Tokenarium"
html_title = project
html_theme = "furo"
extensions = ["myst_nb", "tokenarium.report.mathml"]
templates_path = [str(_HERE / "templates")]
html_static_path = [str(_HERE / "static")]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_sidebars = {"**": ["sidebar/brand.html", "sidebar/search.html", "sidebar/families.html"]}
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_use_index = False
html_show_search_summary = False  # it fetches pages, which a browser forbids below file://
html_math_renderer = "mathml"
smartquotes = False
nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # with tables and formulas
nb_ipywidgets_js = {}  # no widget library from elsewhere
myst_enable_extensions = ["dollarmath", "amsmath"]
suppress_warnings = ["myst.header", "misc.highlighting_failure", "mystnb.unknown_mime_type"]

# Contrast of the first two beside Furo's own colours; the rest is what a verdict looks like.
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0b5394",
        "color-brand-content": "#0b5394",
        "color-brand-visited": "#6a3d9a",
        "color-foreground-muted": "#5c626b",
        "color-good": "#06603a",
        "color-good-background": "#dcf3e7",
        "color-half": "#6d4700",
        "color-half-background": "#fdf0d2",
        "color-bad": "#96180f",
        "color-bad-background": "#fde4e1",
        "color-open": "#3c434c",
        "color-open-background": "#e8ebef",
    },
    "dark_css_variables": {
        "color-brand-primary": "#8cc2f7",
        "color-brand-content": "#8cc2f7",
        "color-brand-visited": "#c7a6ee",
        "color-foreground-muted": "#a3a9b1",
        "color-good": "#7fe0b0",
        "color-good-background": "#0e3b29",
        "color-half": "#f5cd80",
        "color-half-background": "#43330d",
        "color-bad": "#ffb0a8",
        "color-bad-background": "#4d1b17",
        "color-open": "#cdd3da",
        "color-open-background": "#30363d",
    },
}
