"""`python -m jprune.cli`."""

import sys

from jprune.cli import main

sys.exit(main())
