"""Reading tables, writing results, and saving fitted models to folders."""
