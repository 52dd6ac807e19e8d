#!/usr/bin/env python3
"""Send one audit event to Kafka: from standard input, or made of the flags. Needs confluent-kafka.

python examples/emit_event.py --operation ritual.query --actor alice
echo '{"operation": "ritual.query", "actor": "alice"}' | python examples/emit_event.py --stdin
"""

import argparse
import json
import os
import sys
import uuid
from datetime import UTC, datetime

from confluent_kafka import KafkaError, Message, Producer


def main() -> int:
    options = _options()
    try:
        given = json.load(sys.stdin) if options.stdin else {}
    except json.JSONDecodeError as error:
        print(f"standard input is not JSON: {error}", file=sys.stderr)
        return 2
    flags = {name: getattr(options, name) for name in ("operation", "command", "args", "actor", "status", "client_app")}
    event = {
        # Its own id: sent twice, it is on the chain once.
        "audit_id": str(uuid.uuid4()),
        "correlation_id": str(uuid.uuid4()),
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "status": "Success",
        **{name: value for name, value in flags.items() if value is not None},
        **given,
    }
    failures: list[KafkaError] = []

    def answered(error: KafkaError | None, message: Message) -> None:
        if error:
            failures.append(error)
        else:
            print(json.dumps({"topic": message.topic(), "offset": message.offset(), "audit_id": event["audit_id"]}))

    producer = Producer({"bootstrap.servers": options.brokers, "acks": "all", "message.timeout.ms": 10_000})
    producer.produce(options.topic, json.dumps(event).encode(), key=str(event["actor"]).encode(), on_delivery=answered)
    producer.flush()
    if failures:
        print(f"{options.brokers}: {failures[0].str()}", file=sys.stderr)
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--brokers", default=os.environ.get("KAFKA_BROKERS", "localhost:9092"))
    parser.add_argument("--topic", default=os.environ.get("KAFKA_TOPICS", "forge.audit.query.executed"))
    parser.add_argument("--stdin", action="store_true", help="read the event, a JSON object, from standard input")
    parser.add_argument("--operation", default="ritual.query", help="what was done (ritual.query)")
    parser.add_argument("--actor", default=os.environ.get("USER", "somebody"), help="who did it")
    for name in ("command", "args", "status", "client-app"):
        parser.add_argument(f"--{name}")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
