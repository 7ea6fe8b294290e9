"""Contract tables: one row a method, a spelling of a net or a mechanism, one claim for all rows.

What stands in a `KNOWN` table is wrong today: {row: what differs, and the line that guesses}. Such
a test must fail; whoever mends it takes its row out.
"""
