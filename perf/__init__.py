"""Where the time goes: measured (`perf.sweep`), beside other implementations (`perf.peers`), on a GPU (``perf/on_gpu.sh``), and what the compiler says (`perf.static`)."""
