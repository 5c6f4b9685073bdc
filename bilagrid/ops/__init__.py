"""The operators, one file each: documentation, checks, schema, fake and autograd. `bilagrid` itself lists what is public."""
