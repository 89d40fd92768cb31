"""The Open Inference Protocol (V2): its requests, tensors, and responses."""
