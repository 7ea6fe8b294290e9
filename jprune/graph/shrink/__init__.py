"""From masks to a net that is really smaller.

`slim.py` makes the small function and the small arrays: read it first. `rules.py` runs each
primitive on fewer channels, `bodies.py` those that contain functions; `plans.py` writes what was
removed as plain data.
"""
