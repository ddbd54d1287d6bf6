"""Text made safe for Markdown."""

import re


def cell(text: str | None) -> str:
    """Text for a cell of a Markdown table: one line, no bar that ends the cell, no HTML tag. None is no text."""
    line = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", " ".join((text or "").split()))
    return line.replace("|", "\\|")
