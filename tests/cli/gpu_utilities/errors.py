class NoGPUAvailableError(Exception):
    pass
