"""Where the time goes: measured (`perf.sweep`), beside other implementations (`perf.peers`), on a GPU (``perf/on_gpu.sh``), and what the compiler says (`perf.static`)."""

import bilagrid  # noqa: F401 -- before torch: Ctrl-C ends a command that is still loading
