"""From masks to a net that is really smaller.

`slim.py` makes the small function and the small arrays: read it first. `rules.py` has what a
primitive becomes on fewer channels, `bodies.py` functions within functions, `plans.py` what was cut
as plain data.
"""
