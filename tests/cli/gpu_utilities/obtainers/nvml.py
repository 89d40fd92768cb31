import pynvml
from gpu_utilities.gpu import GPU


class NvmlGPUInfoObtainer:
    def gpus(self) -> list[GPU]:
        pynvml.nvmlInit()
        return [_gpu(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(pynvml.nvmlDeviceGetCount())]


def _gpu(handle: object) -> GPU:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    number = pynvml.nvmlDeviceGetMinorNumber(handle)
    return GPU(number, pynvml.nvmlDeviceGetName(handle), memory.total, memory.total - memory.free, pynvml.nvmlDeviceGetUUID(handle))
