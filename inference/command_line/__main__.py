"""``python -m ember.inference.command_line`` is the command ``ember``."""

import sys

from ember.inference.command_line.main import main

sys.exit(main())
