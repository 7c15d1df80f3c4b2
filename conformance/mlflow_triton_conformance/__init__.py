"""The conformance suite for MLflow deployment plugins that claim the target ``triton``."""
