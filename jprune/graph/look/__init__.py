"""Where a net can be looked at or acted on: call sites, what is seen there, residual branches.

Read `sites.py` first, then `intercept.py`, which runs a net with a handler at its sites.
"""
