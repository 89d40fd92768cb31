"""HTTP/1.1 as uvicorn's protocol: connections, requests and responses, their headers, bodies and tokens."""
