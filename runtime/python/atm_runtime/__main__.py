"""python -m atm_runtime verify RUN, or classify RUN IMAGE..."""

import sys

from atm_runtime.runtime.__main__ import main

sys.exit(main())
