"""Transfer of pretrained item encoders into recommenders. Importing this pulls in neither torch nor faiss."""

__version__ = "0.1.0"
