"""A run folder, or a filtered data set, as one self-contained page.

A page needs no network and no script: the pictures are inline SVG whose text and rules take the page's colors, so that
one file serves light and dark. Every text that comes from a run is escaped: by jinja2 in the page, by matplotlib in a
picture.
"""
