"""Networks built from the operators of `bilagrid`."""

import bilagrid  # noqa: F401 -- before torch: Ctrl-C ends a command that is still loading
