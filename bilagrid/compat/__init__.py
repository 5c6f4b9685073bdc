"""The calls that others' users make, over bilagrid's operators."""
