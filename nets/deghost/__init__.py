"""Merging photographs of several exposures into one of high dynamic range. ``python -m nets.deghost --help`` shows the command line."""
