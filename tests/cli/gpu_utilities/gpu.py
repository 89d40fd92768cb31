from dataclasses import dataclass


@dataclass
class GPU:
    cuda_id: int
    name: str
    max_available_memory_bytes: int
    current_memory_utlization_bytes: int
    uuid: str = ""

    def to_torch_device(self) -> str:
        return f"cuda:{self.cuda_id}"

    def free_memory_bytes(self) -> int:
        return self.max_available_memory_bytes - self.current_memory_utlization_bytes
