"""Arrays in, arrays out: histories, ridge solves, sparse matrices and exact top-k."""
