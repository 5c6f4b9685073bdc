"""Where the time goes: what the compiler says of each kernel (`perf.static`), and other implementations beside ours (`perf.peers`)."""
