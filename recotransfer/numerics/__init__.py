"""Arrays in, arrays out: histories, ridge solves, sparse matrices and exact top-k."""

from recotransfer.numerics import threads as threads  # registers its handler for forked processes
