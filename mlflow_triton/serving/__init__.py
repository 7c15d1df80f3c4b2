"""The Triton server's side: HTTP, gRPC, model control and inference.

Foreign exceptions end here; what leaves is from `mlflow_triton.errors`.
"""
