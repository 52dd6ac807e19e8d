from tests.harness import ServerProcess


def test_the_vector_chain_gives_the_published_hashes(
    server: ServerProcess, vectors: dict[str, list[dict[str, object]]]
) -> None:
    for event in vectors["chain"]:
        request = {name: event[name] for name in ("kind", "source", "payload", "timestamp")}
        assert server.post(request).json() == event
    assert server.verify()["valid"]
