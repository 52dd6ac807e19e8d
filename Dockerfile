# By tag: its digest changes with each security fix of Debian. To build twice from the same bytes, pass it on:
# docker build --build-arg PYTHON=python:3.13-slim@sha256:…, as docker buildx imagetools inspect python:3.13-slim prints it.
ARG PYTHON=python:3.13-slim

FROM ${PYTHON} AS build
WORKDIR /checkout
COPY requirements-build.lock ./
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
    --require-hashes --requirement requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
COPY lua ./lua
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /dist .


FROM ${PYTHON}

# Numeric and fixed: Kubernetes' runAsNonRoot can check it, and a data volume keeps its owner
# from one image to the next.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin audit \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data

# What the extras [postgres,kafka] need as well: `make lock` writes the file, and pip refuses what has another hash.
# Mounted, not copied: file and wheel would otherwise stay in a layer beside what was installed from them.
RUN --mount=type=bind,source=requirements.lock,target=/requirements.lock \
    pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
    --require-hashes --requirement /requirements.lock
RUN --mount=type=bind,from=build,source=/dist,target=/dist \
    pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore --no-deps --no-index /dist/*.whl

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
