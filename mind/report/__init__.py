"""Writes the report of a run folder, or of a filtered data set, as one self-contained page.

A page needs no network and no script. Its pictures are inline SVG whose text and lines use the page's colors, so that
one file works in light and dark mode. Every text from a run is escaped: by jinja2 in the page, by matplotlib in a
picture.
"""
