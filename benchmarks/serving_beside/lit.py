"""LitServe, with its batching: `python lit.py MODEL PORT`."""

import sys
from typing import Any

import litserve
import networks
import numpy as np
import torch

MODEL, PORT = sys.argv[1], int(sys.argv[2])


class Scores(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:  # noqa: ARG002
        self.network = networks.network(MODEL)

    def decode_request(self, request: dict[str, Any]) -> "np.ndarray[Any, Any]":
        return np.array(request["dataframe_split"]["data"] if MODEL == "tab" else request["inputs"], np.float32)

    def batch(self, inputs: list["np.ndarray[Any, Any]"]) -> "np.ndarray[Any, Any]":
        self.counts = [len(one) for one in inputs]
        return np.concatenate(inputs)

    def predict(self, inputs: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        with torch.inference_mode():
            return self.network(torch.from_numpy(inputs)).numpy()  # type: ignore[no-any-return]

    def unbatch(self, output: "np.ndarray[Any, Any]") -> list["np.ndarray[Any, Any]"]:
        return np.split(output, np.cumsum(self.counts)[:-1])

    def encode_response(self, output: "np.ndarray[Any, Any]") -> dict[str, Any]:
        return {"predictions": output.tolist()}


if __name__ == "__main__":
    api = Scores(max_batch_size=64, batch_timeout=0.005, api_path="/invocations")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=PORT, num_api_servers=1, generate_client_file=False)
