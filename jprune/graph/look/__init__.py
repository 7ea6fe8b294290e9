"""Where the values of a net can be read or changed: call sites, handlers, residual branches.

Read `sites.py` first, then `intercept.py`, which runs a net with a handler at its sites.
"""
