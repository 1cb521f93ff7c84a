"""`python -m otel_llm.demo`."""

import sys

from otel_llm.demo import main

sys.exit(main())
