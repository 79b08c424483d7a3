"""Source files of the model; they travel as a bundle, which the handler unpacks beside ``iris_model.py``."""
