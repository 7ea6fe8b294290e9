"""Contract tables: one row a method, a spelling of a net or a mechanism, one claim for all rows.

What a module names in `KNOWN` is wrong today: {name of a test: what differs, and where jprune
guesses}. Such a test must fail (`conftest.py`), so whoever mends it takes its line out.
"""
