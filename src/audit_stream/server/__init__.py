"""The HTTP API: Litestar on uvicorn."""
