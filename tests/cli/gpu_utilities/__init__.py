"""A stand-in for gpu-utilities 0.3.0, whose dependency pynvml 11.5.0 would hide nvidia-ml-py in the environment of our tests."""
