"""`python -m nni_sparsevd` is `nni-sparsevd`."""

import sys

from .cli import main

sys.exit(main())
