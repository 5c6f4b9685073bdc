"""The definitions, in float64 by plain loops: slow, and written without a look at the library."""
