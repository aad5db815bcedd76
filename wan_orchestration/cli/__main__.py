"""Runs `wan-animate` as `python -m wan_orchestration.cli`."""

import sys

from wan_orchestration.cli.main import main

sys.exit(main())
