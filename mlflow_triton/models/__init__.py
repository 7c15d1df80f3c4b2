"""MLflow's side: a model URI to a private local copy, and each flavor to the files of a Triton model."""
