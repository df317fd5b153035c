"""Tables in and results out, and the folders that fitted models are saved to."""
