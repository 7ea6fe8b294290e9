"""What lives or dies together: units, branches, and patterns of weights within a kernel."""
