"""Records of a domain into problems for the core, and predictions back into what the domain reads."""
