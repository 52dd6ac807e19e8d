FROM python:3.13-slim AS build
WORKDIR /checkout
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
COPY lua ./lua
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .


FROM python:3.13-slim

# Numeric and fixed: Kubernetes' runAsNonRoot can check it, and a data volume keeps its owner
# from one image to the next.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin audit \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data

# Mounted, not copied: the wheel would otherwise stay in a layer beside what was installed from it.
RUN --mount=type=bind,from=build,source=/dist,target=/dist \
    pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore "$(echo /dist/*.whl)[postgres,kafka]"

# By itself the server listens on 127.0.0.1, which in a container nobody reaches. Here the published
# ports decide who does.
ENV HOST=0.0.0.0 \
    PORT=8093 \
    AUDIT_STREAM_DATA_DIR=/data \
    PYTHONUNBUFFERED=1

# The chain itself, when no AUDIT_STREAM_REDIS_URL is given and the embedded Valkey keeps it.
VOLUME ["/data"]
WORKDIR /data
USER 10001:10001
EXPOSE 8093
STOPSIGNAL SIGTERM

# /healthz and not /readyz: while Redis is away a restart of this process mends nothing.
# The slim image has no curl; http.client, unlike urllib, does not follow a HTTP_PROXY from the environment.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=2); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]

ENTRYPOINT ["audit-stream"]
CMD ["serve"]
